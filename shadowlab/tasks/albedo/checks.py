"""The checks of check-forward on what enters the model: pictures, colour spaces, the empty prompt, channels.

Each returns Check objects; none raises for a wrong model.

Legend: B batch, H W pixels, h w latents (H/8), N tokens, E width of cross-attention.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shadowlab.checks import Check, PathTable
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.settings import Config
from shadowlab.tasks.albedo.contrast import RIGHT, Contrast, contrast, exchanged_text, fault_of
from shadowlab.tasks.albedo.metrics import wrong_space_loss_db
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.albedo.samples import AlbedoBatch
from shadowlab.tasks.colour import colour_round_trip
from shadowlab.tasks.prompt_check import TOKEN_LIMITS, prompt_is_right
from shadowlab.tasks.task import Task
from shadowlab.tasks.vae_checks import decoded_target, latents_are_finite

LATENT_LIMITS = (-30.0, 30.0)  # scaled latents have about unit deviation
_CONDITION_SIDE = 128  # pixels of the corner that is encoded again and again with one input changed


def batch(batch: AlbedoBatch, path: PathTable) -> list[Check]:
    """Before anything is encoded."""
    path.add("input", "beauty", batch.beauty, "(B, 3, H, W)", (0, 1))
    path.add("input", "albedo", batch.albedo, "(B, 3, H, W)", (0, 1))
    path.add("input", "valid", batch.valid, "(B, 1, H, W)", (0, 1))
    shown = [
        contrast(beauty, albedo, valid, batch.space, batch.space)
        for beauty, albedo, valid in zip(batch.beauty, batch.albedo, batch.valid, strict=True)
    ]
    return [
        colour_round_trip(),
        spaces_are_right(batch, shown),
        pairs_are_not_exchanged(batch, shown),
        target_is_not_the_input(batch),
    ]


def spaces_are_right(batch: AlbedoBatch, found: Sequence[Contrast]) -> Check:
    """Whether the samples, as they are declared, behave as light does; and what a mistake would cost."""
    wrong = [one for one in found if not one.is_right]
    cost = float(wrong_space_loss_db(batch.albedo, batch.valid, batch.space).mean())
    ratios = ", ".join(f"{one.ratio:.2f} over {one.num_edges}" for one in found)
    return Check(
        "colour spaces are those that are declared",
        not wrong,
        f"steps of the beauty {RIGHT[0]:g} to {RIGHT[1]:g} times those of the albedo",
        f"{ratios} steps; all is in {batch.space} now, and a perfect prediction in the other space would have a PSNR "
        f"of {cost:.1f} dB",
        fault_of(wrong[0].ratio, batch.space, batch.space) if wrong else "",
    )


def pairs_are_not_exchanged(batch: AlbedoBatch, found: Sequence[Contrast]) -> Check:
    """Whether the beauty is the one with shadows."""
    wrong = [(name, one) for name, one in zip(batch.ids, found, strict=True) if one.is_exchanged]
    return Check(
        "the beauty is the one with light and shadow",
        not wrong,
        "edges of the albedo are in the beauty, too",
        f"not in {', '.join(name for name, _ in wrong)}" if wrong else f"so in {len(batch)} of {len(batch)}",
        exchanged_text(wrong[0][1].own_edges) if wrong else "",
    )


def target_is_not_the_input(batch: AlbedoBatch) -> Check:
    """Of samples that are one picture twice nothing is learnt but to copy."""
    same = [name for i, name in enumerate(batch.ids) if torch.equal(batch.beauty[i], batch.albedo[i])]
    return Check(
        "beauty and albedo are two pictures",
        not same,
        "they differ in every sample",
        f"the same in {', '.join(same)}" if same else f"{len(batch)} of {len(batch)} differ",
        "the columns of the list, or the folders, name one file twice",
    )


def encoding(
    task: Task[Any],
    batch: AlbedoBatch,
    encoded: EncodedBatch,
    path: PathTable,
    *,
    config: Config,
    options: AlbedoOptions,
) -> list[Check]:
    """Latents finite, decoded range right, conditions in their places; a trained VAE gives the albedo back."""
    parts = _parts(encoded)
    path.add("condition", "beauty latent", parts["beauty latent"], "(B, 4, h, w)", LATENT_LIMITS)
    path.add("condition", "empty prompt", parts["empty prompt"], "(B, N, E)", TOKEN_LIMITS)
    path.add("condition", "valid latents", parts["valid"], "(B, 1, h, w)", (0, 1))
    path.add("VAE", "albedo latent (data)", encoded.data, "(B, 4, h, w)", LATENT_LIMITS)
    found = [latents_are_finite(encoded, torch.cat([encoded.data, parts["beauty latent"]]))]
    round_trip = decoded_target(task, batch, encoded, path, "albedo")
    found += [] if config.model.vae_is_random else [round_trip]
    return [*found, prompt_is_right(parts["empty prompt"], config, options.empty_prompt), *places(task, batch)]


def places(task: Task[Any], batch: AlbedoBatch) -> list[Check]:
    """Each input reaches its own part of what the model sees, and no other: above all, the target none of it."""
    window = (..., slice(0, _CONDITION_SIDE), slice(0, _CONDITION_SIDE))
    corner = replace(batch, beauty=batch.beauty[window], albedo=batch.albedo[window], valid=batch.valid[window])
    before = _parts(task.encode(corner))
    changed = {
        "albedo": replace(corner, albedo=_other(corner.albedo)),
        "beauty": replace(corner, beauty=_other(corner.beauty)),
        "valid": replace(corner, valid=1 - corner.valid),
    }
    moved = {}
    for name, other in changed.items():
        after = _parts(task.encode(other))
        moved[name] = [part for part in before if not torch.equal(before[part], after[part])]
    leaked = [part for part in moved["albedo"] if part != "data"]
    wrong = [f"{name} -> {', '.join(moved[name]) or 'nothing'}" for name in _PLACES if moved[name] != [_PLACES[name]]]
    return [
        Check(
            "the target does not reach the conditions",
            not leaked,
            "beauty latent, prompt and mask bit-equal under another albedo",
            f"moved: {', '.join(leaked) or 'none'}",
            "the answer is in the input: take the albedo out of what Task.encode concatenates",
        ),
        Check(
            "each input has its own channels",
            not wrong,
            "albedo in the target, beauty in channels 4-7, the mask in neither",
            "; ".join(wrong) or "the same",
            "Task.encode must join [x_t, beauty latent] in this order: it is in the weights of every checkpoint",
        ),
    ]


_PLACES = {"albedo": "data", "beauty": "beauty latent", "valid": "valid"}


def _parts(encoded: EncodedBatch) -> dict[str, Tensor]:
    beauty, told = encoded.conditions.concatenated, encoded.conditions.tokens
    assert beauty is not None and told is not None and encoded.valid is not None, "the albedo task gives all three"
    return {"data": encoded.data, "beauty latent": beauty, "empty prompt": told, "valid": encoded.valid}


def _other(picture: Tensor) -> Tensor:
    """Another picture in [0, 1] everywhere."""
    return torch.where(picture > 0.5, picture - 0.5, picture + 0.5)
