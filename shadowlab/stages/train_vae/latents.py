"""The latents that a flow is to learn: their modes, and the balance of their channels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shadowlab.encoded_batch import LATENT_CHANNELS


@torch.no_grad()
def modes(model: Any, pictures: Sequence[Tensor]) -> Tensor:
    """Unscaled posterior modes (N, 4, h, w) of N pictures (3, H, W)."""
    device = next(model.parameters()).device
    return torch.cat([model.encode(picture[None].to(device)).latent_dist.mode() for picture in pictures])


@torch.no_grad()
def balance(model: Any, latents: Tensor) -> None:
    """Give every channel of `latents` mean 0 and one common deviation, by the 1 x 1 convolutions around the latent.

    What is decoded stays the same and the file stays of SDXL's class. The flow starts from noise of mean 0 and equal
    deviations; an offset would be one more thing to learn, and R^2 does not count it.
    """
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    factor = latents.var(dim=(0, 2, 3)).mean().sqrt() / std
    into, out_of = model.quant_conv, model.post_quant_conv
    into.weight[:LATENT_CHANNELS] *= factor.view(-1, 1, 1, 1)
    into.bias[:LATENT_CHANNELS] = (into.bias[:LATENT_CHANNELS] - mean) * factor
    into.bias[LATENT_CHANNELS:] += 2.0 * factor.log()  # the posterior's log variance
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight /= factor.view(1, -1, 1, 1)
