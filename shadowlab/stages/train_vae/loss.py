"""The small VAE's loss: shadows, objects, and a little KL."""

from typing import Any

import torch
from torch import Tensor

from shadowlab.seeding import generator, normal

_KL_WEIGHT = 1e-3  # enough to keep latents simple, which is what a small flow model learns fast
_IOU_WEIGHT = 0.2  # the error relative to a shadow's own mass, so that small shadows count too
_MAX_NOISE = 0.3  # latent noise in training, in standard deviations of the channel; 5 % of variance is 0.22


def loss_terms(model: Any, shadows: Tensor, objects: Tensor, step: int, seed: int) -> dict[str, Tensor]:
    """Scalar `loss` and its terms `shadow`, `object` and `kl`. Pictures are compared in [0, 1].

    Args:
        shadows: (M, 1, H, W) in [0, 1]. objects: (N, 3, H, W) in [-1, 1].
    """
    pictures = torch.cat([shadows.expand(-1, 3, -1, -1) * 2.0 - 1.0, objects])
    posterior = model.encode(pictures).latent_dist
    draws = normal((2, *posterior.mean.shape), seed, "vae-noise", step).to(pictures.device)
    strength = torch.rand(len(pictures), 1, 1, 1, generator=generator(seed, "vae-strength", step)) * _MAX_NOISE
    strength[len(shadows) :] = 0.0  # the flow makes shadows; object latents come from the encoder
    # Each channel by its own deviation: by the common one, a channel that starts small drowns and stays unused.
    strength = strength.to(pictures.device) * posterior.mean[: len(shadows)].detach().std(dim=(0, 2, 3), keepdim=True)
    latents = posterior.mean + posterior.std * draws[0] + strength * draws[1]
    decoded = (model.decode(latents).sample + 1.0) / 2.0

    ours, target = decoded[: len(shadows)], shadows.expand(-1, 3, -1, -1)
    # Decoding clamps, so below 0 on black costs little: the background can be exactly 0 under latent noise.
    clamped = ours.clamp(0.0, 1.0)
    error = clamped - target + 0.1 * (ours - clamped)
    iou = torch.minimum(clamped, target).flatten(1).sum(1) / torch.maximum(clamped, target).flatten(1).sum(1).add(1.0)
    has_shadow = (target.flatten(1).sum(1) > 1.0).float()
    shadow = error.abs().mean() + 10.0 * error.square().mean() + _IOU_WEIGHT * ((1.0 - iou) * has_shadow).mean()
    difference = decoded[len(shadows) :] - (objects + 1.0) / 2.0
    objects_loss = difference.abs().mean() + 10.0 * difference.square().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss = shadow + objects_loss + _KL_WEIGHT * kl
    return {"loss": loss, "shadow": shadow, "object": objects_loss, "kl": kl}
