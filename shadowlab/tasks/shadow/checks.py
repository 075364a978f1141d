"""The checks of check-forward on what enters the model: pictures, conditions, light.

Each returns Check objects; none raises for a wrong model.

Legend: B batch, H W pixels, h w latents (H/8).
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shadowlab.checks import Check, PathTable
from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS, EncodedBatch
from shadowlab.tasks.shadow.light import EMBEDDING_DIM, RANGES, SCALAR_DIM, embed_light, near_light
from shadowlab.tasks.shadow.samples import Batch
from shadowlab.tasks.task import Task
from shadowlab.tasks.vae_checks import decoded_target, latents_are_finite

LATENT_LIMITS = (-30.0, 30.0)  # scaled latents have about unit deviation; SDXL's without scaling_factor reach 50
EMBEDDING_LIMITS = (-math.sqrt(SCALAR_DIM / 2), math.sqrt(SCALAR_DIM / 2))  # norm of each scalar's vector
_CONDITION_SIDE = 128  # pixels of the centre that is encoded again and again with one input changed

Encoder = Task[Any]


def add_inputs(path: PathTable, batch: Batch) -> None:
    """The pictures and the light to the path."""
    path.add("input", "object image", batch.object_image, "(B, 3, H, W)", (-1, 1))
    path.add("input", "mask", batch.mask, "(B, 1, H, W)", (0, 1))
    path.add("input", "shadow map", batch.shadow, "(B, 1, H, W)", (0, 1))
    for column, (name, limits) in enumerate(RANGES.items()):
        path.add("input", f"light {name}", batch.light[:, column], "(B)", limits)


def background_is_constant(batch: Batch) -> Check:
    """The picture outside the mask must be one constant, or the target's shadow leaks into the input."""
    outside = batch.object_image[(batch.mask == 0).expand_as(batch.object_image)]
    spread = float(outside.amax() - outside.amin()) if outside.numel() else 0.0
    return Check(
        "background of the object image is constant",
        spread == 0.0,
        "spread 0 outside the mask",
        f"spread {spread:.3g} over {outside.numel()} values",
        "composite the object with its mask (shadowlab.data.composite) before encoding",
    )


def encoding(task: Encoder, batch: Batch, encoded: EncodedBatch, path: PathTable, *, trained_vae: bool) -> list[Check]:
    """Latents finite, decoded range right, conditions in their places; a trained VAE gives the map back."""
    parts = _parts(encoded)
    path.add(
        "condition", "light embedding", parts["light embedding"], f"(B, {task.spec.embedding_dim})", EMBEDDING_LIMITS
    )
    path.add("condition", "object latent", parts["object latent"], "(B, 4, h, w)", LATENT_LIMITS)
    path.add("condition", "latent mask", parts["mask"], "(B, 1, h, w)", (0, 1))
    path.add("VAE", "shadow latent (data)", encoded.data, "(B, 4, h, w)", LATENT_LIMITS)
    found = [latents_are_finite(encoded, torch.cat([encoded.data, parts["object latent"]]))]
    round_trip = decoded_target(task, batch, encoded, path, "shadow map")
    found += [round_trip] if trained_vae else []
    return found + conditions(task, batch, encoded)


def conditions(task: Encoder, batch: Batch, encoded: EncodedBatch) -> list[Check]:
    """Each input reaches its own part of what the model sees, and no other: above all, the target none of it.

    The object image comes composited with its mask, so the mask itself moves the mask's channel alone.
    """
    centre = _centre(batch, _CONDITION_SIDE)
    before = _parts(task.encode(centre))
    changed = {
        "shadow map": replace(centre, shadow=_other(centre.shadow, 0.5)),
        "object image": replace(centre, object_image=_other(centre.object_image, 0.0)),
        "mask": replace(centre, mask=1 - centre.mask),
        "light": replace(centre, light=near_light(centre.light)),
    }
    moved = {}
    for name, other in changed.items():
        after = _parts(task.encode(other))
        moved[name] = [part for part in before if not torch.equal(before[part], after[part])]
    wrong = [f"{name} -> {', '.join(moved[name]) or 'nothing'}" for name in _PLACES if moved[name] != [_PLACES[name]]]
    leaked = [part for part in moved["shadow map"] if part != "data"]
    wanted = torch.cat([embed_light(row[None]) for row in batch.light.cpu()])
    off = float((light_embedding(encoded).cpu().float()[:, :EMBEDDING_DIM] - wanted).abs().amax())
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
    concatenated = encoded.conditions.concatenated
    assert concatenated is not None, "the shadow task concatenates object and mask"
    return {
        "data": encoded.data,
        "object latent": concatenated[:, :LATENT_CHANNELS],
        "mask": concatenated[:, LATENT_CHANNELS:],
        "light embedding": light_embedding(encoded),
    }


def light_embedding(encoded: EncodedBatch) -> Tensor:
    """(B, 768), or more with an intensity."""
    assert encoded.conditions.embedding is not None, "the shadow task embeds the light"
    return encoded.conditions.embedding


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
