"""The checks of check-forward on what enters the model: pictures, conditions, light and the VAE that encodes them.

Each returns Check objects; none raises for a wrong model.
"""

from dataclasses import replace

import torch
from torch import Tensor

from shadowlab.models import DOWNSCALE, LATENT_CHANNELS
from shadowlab.stages.check_forward.report import Check, PathTable
from shadowlab.tasks import RANGES, Batch, EncodedBatch, Task, embed_light, psnr

_DECODED_LATENT = 64  # side of the latents that the VAE decodes: at 1024 pixels it costs more than the whole UNet
_CONDITION_SIDE = 128  # pixels of the centre that is encoded again and again with one input changed
_MIN_ROUND_TRIP_DB = 20.0


def background_is_constant(batch: Batch) -> Check:
    """The picture outside the mask must be one constant, or the target's shadow leaks into the input."""
    outside = batch.object_image[(batch.mask == 0).expand_as(batch.object_image)]
    spread = float(outside.amax() - outside.amin()) if outside.numel() else 0.0
    return Check(
        "background of the object image is constant",
        spread == 0.0,
        "spread 0 outside the mask",
        f"spread {spread:.3g} over {outside.numel()} values",
        "composite the object with its mask (shadowlab.data.images.composite) before encoding",
    )


def vae_is_frozen(task: Task) -> Check:
    """Asked before it encodes anything: a VAE in half refuses to."""
    parameters = list(task.vae.autoencoder.parameters())
    trainable = sum(p.requires_grad for p in parameters)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return Check(
        "VAE is frozen in float32",
        trainable == 0 and dtypes == ["float32"],
        "no trainable tensor, all float32",
        f"{trainable} trainable of {len(parameters)}, {', '.join(dtypes)}",
        "do not pass the VAE to the optimizer or to .half()",
    )


def conditions(task: Task, batch: Batch, encoded: EncodedBatch) -> list[Check]:
    """Each input reaches its own part of what the model sees, and no other: above all, the target none of it.

    The object image comes composited with its mask, so the mask itself moves the mask's channel alone.
    """
    centre = _centre(batch, _CONDITION_SIDE)
    before = _parts(task.encode(centre))
    changed = {
        "shadow map": replace(centre, shadow=_other(centre.shadow, 0.5)),
        "object image": replace(centre, object_image=_other(centre.object_image, 0.0)),
        "mask": replace(centre, mask=1 - centre.mask),
        "light": replace(centre, light=other_light(centre.light)),
    }
    moved = {}
    for name, other in changed.items():
        after = _parts(task.encode(other))
        moved[name] = [part for part in before if not torch.equal(before[part], after[part])]
    wrong = [f"{name} -> {', '.join(moved[name]) or 'nothing'}" for name in _PLACES if moved[name] != [_PLACES[name]]]
    leaked = [part for part in moved["shadow map"] if part != "data"]
    wanted = torch.cat([embed_light(row[None]) for row in batch.light.cpu()])
    off = float((encoded.embedding.cpu().float() - wanted).abs().amax())
    return [
        Check(
            "the target does not reach the conditions",
            not leaked,
            "object latent, mask and light bit-equal under another shadow map",
            f"moved: {', '.join(leaked) or 'none'}",
            "the answer is in the input: take the shadow map out of what Task.encode concatenates and embeds",
        ),
        Check(
            "each input has its own channels",
            not wrong,
            "object latent in 0-3, mask in 4, light in the embedding",
            "; ".join(wrong) or "the same",
            "Task.encode must join [object latent, mask] in this order: it is in the weights of every checkpoint",
        ),
        Check(
            "each sample has its own light",
            off <= 1e-5,
            "embedding of row i = embed_light(light of row i)",
            f"off by {off:.3g} at most",
            "rows are exchanged, or another embedding is used: see embed_light and Task.encode",
        ),
    ]


_PLACES = {"shadow map": "data", "object image": "object latent", "mask": "mask", "light": "light embedding"}


def _parts(encoded: EncodedBatch) -> dict[str, Tensor]:
    return {
        "data": encoded.data,
        "object latent": encoded.concatenated[:, :LATENT_CHANNELS],
        "mask": encoded.concatenated[:, LATENT_CHANNELS:],
        "light embedding": encoded.embedding,
    }


def _centre(batch: Batch, side: int) -> Batch:
    """The central square of at most `side` pixels."""
    size = batch.mask.shape[-1]
    kept = min(size, side)
    start = (size - kept) // 2 // DOWNSCALE * DOWNSCALE
    window = (..., slice(start, start + kept), slice(start, start + kept))
    return replace(batch, object_image=batch.object_image[window], mask=batch.mask[window], shadow=batch.shadow[window])


def _other(picture: Tensor, middle: float) -> Tensor:
    """Another picture everywhere, in the range of (0, 1) or (-1, 1) around `middle`."""
    step = 0.5 if middle else 1.0
    return torch.where(picture > middle, picture - step, picture + step)


def other_light(light: Tensor) -> Tensor:
    """(B, 3) -> (B, 3): each value a quarter of its range beyond the middle, on the other side of it."""
    low, high = torch.tensor(list(RANGES.values()), dtype=light.dtype, device=light.device).unbind(dim=1)
    middle, quarter = (low + high) / 2, (high - low) / 4
    return torch.where(light <= middle, middle + quarter, middle - quarter)


def vae(task: Task, batch: Batch, encoded: EncodedBatch, path: PathTable, *, trained: bool) -> list[Check]:
    """Latents finite, decoded range right; a `trained` VAE gives the map back."""
    side = encoded.data.shape[-1]
    start, kept = max(0, side - _DECODED_LATENT) // 2, min(side, _DECODED_LATENT)
    decoded = task.decode(encoded.data[..., start : start + kept, start : start + kept].contiguous()).cpu()
    if kept == side:
        path.add("VAE", "decoded shadow map", decoded, "(B, 1, H, W)", (0, 1))
    else:
        path.add(
            "VAE", "decoded shadow map, centre", decoded, f"(B, 1, {kept * DOWNSCALE}, {kept * DOWNSCALE})", (0, 1)
        )
    latents = torch.cat([encoded.data, encoded.concatenated[:, :LATENT_CHANNELS]])
    dtypes = {encoded.data.dtype, encoded.concatenated.dtype}
    finite, largest = bool(latents.isfinite().all()), float(latents.abs().amax())
    checks = [
        Check(
            "VAE latents are finite",
            finite and dtypes == {torch.float32},
            "finite, float32",
            f"largest magnitude {largest:.3g}, std {float(latents.std()):.3g}, {', '.join(sorted(map(str, dtypes)))}",
            "the VAE must run in float32 (SDXL's overflows float16); check its weights and the picture's range",
        ),
    ]
    if trained:
        pixels = slice(start * DOWNSCALE, (start + kept) * DOWNSCALE)
        quality = float(psnr(decoded, task.target(batch)[..., pixels, pixels].cpu()).amin())
        checks.append(
            Check(
                "VAE gives the shadow map back",
                quality >= _MIN_ROUND_TRIP_DB,
                f"PSNR >= {_MIN_ROUND_TRIP_DB:g} dB",
                f"{quality:.1f} dB",
                "this VAE does not know such pictures, or scaling_factor is wrong: check model.vae",
            )
        )
    return checks
