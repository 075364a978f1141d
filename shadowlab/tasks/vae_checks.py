"""Checks of what a frozen VAE makes of pictures, for every task that has one.

Legend: B batch, C channels, H W pixels, h w latents (H/8).
"""

import torch
from torch import Tensor

from shadowlab.checks import Check, PathTable
from shadowlab.encoded_batch import DOWNSCALE, EncodedBatch
from shadowlab.metrics import psnr
from shadowlab.models import ImageVae
from shadowlab.tasks.task import B, Task

_DECODED_LATENT = 64  # side of the latents that the VAE decodes: at 1024 pixels it costs more than the whole UNet
_MIN_ROUND_TRIP_DB = 20.0


def vae_is_frozen(vae: ImageVae) -> Check:
    """Asked before it encodes anything: a VAE in half refuses to."""
    parameters = list(vae.autoencoder.parameters())
    trainable = sum(p.requires_grad for p in parameters)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return Check(
        "VAE is frozen in float32",
        trainable == 0 and dtypes == ["float32"],
        "no trainable tensor, all float32",
        f"{trainable} trainable of {len(parameters)}, {', '.join(dtypes)}",
        "do not pass the VAE to the optimizer or to .half()",
    )


def latents_are_finite(encoded: EncodedBatch, latents: Tensor) -> Check:
    """latents: (n, 4, h, w), all that the VAE made from the batch's pictures."""
    parts = [encoded.data, *(one for one in (encoded.conditions.concatenated,) if one is not None)]
    dtypes = {part.dtype for part in parts}
    finite, largest = bool(latents.isfinite().all()), float(latents.abs().amax())
    return Check(
        "VAE latents are finite",
        finite and dtypes == {torch.float32},
        "finite, float32",
        f"largest magnitude {largest:.3g}, std {float(latents.std()):.3g}, {', '.join(sorted(map(str, dtypes)))}",
        "the VAE must run in float32 (SDXL's overflows float16); check its weights and the picture's range",
    )


def decoded_target(task: Task[B], batch: B, encoded: EncodedBatch, path: PathTable, noun: str) -> Check:
    """That decoding the target's latents gives the target back; at most their central 64 x 64 are decoded.

    Args:
        noun: what the picture is: `shadow map`.
    """
    side = encoded.data.shape[-1]
    start, kept = max(0, side - _DECODED_LATENT) // 2, min(side, _DECODED_LATENT)
    decoded = task.decode(encoded.data[..., start : start + kept, start : start + kept].contiguous()).cpu()
    channels, pixels = decoded.shape[1], kept * DOWNSCALE
    if kept == side:
        path.add("VAE", f"decoded {noun}", decoded, f"(B, {channels}, H, W)", (0, 1))
    else:
        path.add("VAE", f"decoded {noun}, centre", decoded, f"(B, {channels}, {pixels}, {pixels})", (0, 1))
    window = slice(start * DOWNSCALE, (start + kept) * DOWNSCALE)
    quality = float(psnr(decoded, task.target(batch)[..., window, window].cpu()).amin())
    return Check(
        f"VAE gives the {noun} back",
        quality >= _MIN_ROUND_TRIP_DB,
        f"PSNR >= {_MIN_ROUND_TRIP_DB:g} dB",
        f"{quality:.1f} dB",
        "this VAE does not know such pictures, or scaling_factor is wrong: check model.vae",
    )
