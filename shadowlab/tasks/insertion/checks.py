"""The checks of check-forward on what enters the model: pictures, canvas, mask, prompt, channels.

Each returns Check objects; none raises for a wrong model.

Legend: B batch, H W pixels, h w latents of one picture, N tokens, E width of cross-attention.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shadowlab.checks import Check, PathTable
from shadowlab.encoded_batch import DOWNSCALE, EncodedBatch
from shadowlab.settings import Config
from shadowlab.tasks.insertion.layout import halves
from shadowlab.tasks.insertion.options import InsertionOptions
from shadowlab.tasks.insertion.samples import InsertionBatch
from shadowlab.tasks.prompt_check import TOKEN_LIMITS, prompt_is_right
from shadowlab.tasks.task import Task
from shadowlab.tasks.vae_checks import decoded_target, latents_are_finite

LATENT_LIMITS = (-30.0, 30.0)  # scaled latents have about unit deviation
_CONDITION_SIDE = 128  # pixels of the corner that is encoded again and again with one input changed


def batch(batch: InsertionBatch, path: PathTable) -> list[Check]:
    """Before anything is encoded."""
    path.add("input", "target", batch.target, "(B, 3, H, W)", (0, 1))
    path.add("input", "object", batch.object, "(B, 3, H, W)", (0, 1))
    path.add("input", "mask", batch.mask, "(B, 1, H, W)", (0, 1))
    shares = batch.mask.flatten(1).mean(dim=1)
    covered = ", ".join(f"{share:.1%}" for share in shares.tolist())
    binary = bool(((batch.mask == 0) | (batch.mask == 1)).all())
    return [
        Check(
            "the mask is binary and not empty",
            binary and bool((shares > 0).all()),
            "0 or 1 everywhere, 1 somewhere",
            f"{'binary' if binary else 'other values'}; covers {covered}",
            "masks are read in shadowlab/tasks/insertion/pictures.py, read_mask: grey, 128 of 255 counts",
        )
    ]


def encoding(
    task: Task[Any],
    batch: InsertionBatch,
    encoded: EncodedBatch,
    path: PathTable,
    *,
    config: Config,
    options: InsertionOptions,
) -> list[Check]:
    """Latents finite, halves in their places, the target's inside in no condition; a trained VAE gives it back."""
    beside = options.model.beside
    parts = _parts(encoded, options)
    path.add("condition", "mask in latents", parts["mask"], "(B, 1, h, w)", (0, 1))
    path.add("condition", "masked picture's latents", parts["masked picture"], "(B, 4, h, w)", LATENT_LIMITS)
    path.add("condition", "object's latents", parts["object"], "(B, 4, h, w)", LATENT_LIMITS)
    path.add("condition", "prompt", parts["prompt"], "(B, N, E)", TOKEN_LIMITS)
    path.add("VAE", "target's latents (data)", parts["data"], "(B, 4, h, w)", LATENT_LIMITS)
    every = torch.cat([parts["data"], parts["object"], parts["masked picture"]])
    found = [latents_are_finite(encoded, every), canvas(encoded, batch, parts, beside)]
    round_trip = decoded_target(task, batch, encoded, path, "target")
    found += [] if config.model.vae_is_random else [round_trip]
    if batch.prompt is None:
        found.append(prompt_is_right(parts["prompt"], config, options.empty_prompt))
    return [*found, *places(task, batch, options)]


def canvas(encoded: EncodedBatch, batch: InsertionBatch, parts: dict[str, Tensor], beside: str) -> Check:
    """Two pictures in space; the object's half clean: no mask, and the same latents in the data."""
    height, width = (side // DOWNSCALE for side in batch.target.shape[-2:])
    wanted = (2 * height, width) if beside == "height" else (height, 2 * width)
    seen = tuple(encoded.data.shape[-2:])
    shown = batch.shown.view(-1, 1, 1, 1).to(parts["object"].device) > 0
    same = torch.equal(parts["object"], torch.where(shown, parts["object in data"], 0.0))
    unmasked = not bool(parts["mask of the object"].any())
    return Check(
        "the object stands next to the target, clean",
        seen == wanted and same and unmasked,
        f"{wanted[0]} x {wanted[1]} latents, no mask on the object's half, its own latents there",
        f"{seen[0]} x {seen[1]}, {'no mask' if unmasked else 'masked'}, {'its latents' if same else 'other latents'}",
        "see shadowlab/tasks/insertion/task.py, assemble, and layout.py, joined",
    )


def places(task: Task[Any], batch: InsertionBatch, options: InsertionOptions) -> list[Check]:
    """Each input reaches its own part of what the model sees, and no other: above all, what lies inside the mask does
    not."""
    window = (..., slice(0, _CONDITION_SIDE), slice(0, _CONDITION_SIDE))
    corner = replace(batch, target=batch.target[window], object=batch.object[window], mask=batch.mask[window].clone())
    side = min(corner.mask.shape[-2:])
    corner.mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1  # a cut may have none of the mask
    before = _parts(task.encode(corner), options)
    inside = torch.where(corner.mask > 0, _other(corner.target), corner.target)
    outside = torch.where(corner.mask > 0, corner.target, _other(corner.target))
    larger = corner.mask.clone()
    larger[..., : DOWNSCALE * 2] = 1 - larger[..., : DOWNSCALE * 2]
    changed = {
        "target inside": replace(corner, target=inside),
        "target outside": replace(corner, target=outside),
        "object": replace(corner, object=_other(corner.object)),
        "mask": replace(corner, mask=larger),
    }
    moved = {}
    for name, other in changed.items():
        after = _parts(task.encode(other), options)
        moved[name] = [part for part in before if not torch.equal(before[part], after[part])]
    leaked = [part for part in moved["target inside"] if part != "data"]
    wrong = [f"{name} -> {', '.join(moved[name]) or 'nothing'}" for name in _PLACES if moved[name] != _PLACES[name]]
    return [
        Check(
            "what lies inside the mask does not reach the conditions",
            not leaked,
            "mask, masked picture, object and prompt bit-equal under another inside",
            f"moved: {', '.join(leaked) or 'none'}",
            "the answer is in the input: mask the picture in pixels, before it is encoded (layout.py, masked_picture)",
        ),
        Check(
            "each input has its own channels and half",
            not wrong,
            "channels [x_t 0-3, mask 4, given 5-8], target first, object second",
            "; ".join(wrong) or "the same",
            "shadowlab/tasks/insertion/task.py, assemble: the order is in the weights of every inpainting model",
        ),
    ]


_PLACES = {
    "target inside": ["data"],
    "target outside": ["data", "masked picture"],
    "object": ["object in data", "object"],
    "mask": ["mask", "masked picture"],
}


def _parts(encoded: EncodedBatch, options: InsertionOptions) -> dict[str, Tensor]:
    given, told = encoded.conditions.concatenated, encoded.conditions.tokens
    assert given is not None and told is not None, "the insertion task gives both"
    (first, second), (data, own) = halves(given, options.model.beside), halves(encoded.data, options.model.beside)
    return {
        "data": data,
        "object in data": own,
        "mask": first[:, :1],
        "masked picture": first[:, 1:],
        "mask of the object": second[:, :1],
        "object": second[:, 1:],
        "prompt": told,
    }


def _other(picture: Tensor) -> Tensor:
    """Another picture in [0, 1] everywhere."""
    return torch.where(picture > 0.5, picture - 0.5, picture + 0.5)
