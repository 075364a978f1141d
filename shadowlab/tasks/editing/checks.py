"""The checks of check-forward on what enters the model: pictures, masks, gains, the empty prompt, channels.

Each returns Check objects; none raises for a wrong model.

Legend: B batch, H W pixels, h w latents (H/8), N tokens, E width of cross-attention.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shadowlab.checks import Check, PathTable
from shadowlab.encoded_batch import LATENT_CHANNELS, EncodedBatch
from shadowlab.settings import Config
from shadowlab.tasks.colour import colour_round_trip
from shadowlab.tasks.editing.options import EditingOptions
from shadowlab.tasks.editing.samples import EditingBatch
from shadowlab.tasks.editing.white_balance import cast
from shadowlab.tasks.prompt_check import TOKEN_LIMITS, prompt_is_right
from shadowlab.tasks.task import Task
from shadowlab.tasks.vae_checks import decoded_target, latents_are_finite

LATENT_LIMITS = (-30.0, 30.0)  # scaled latents have about unit deviation
_CONDITION_SIDE = 128  # pixels of the corner that is encoded again and again with one input changed
_GAIN_TOLERANCE = 0.05  # mean, of [0, 1]: pictures are made smaller after the gains were applied


def batch(batch: EditingBatch, path: PathTable, options: EditingOptions) -> list[Check]:
    """Before anything is encoded."""
    edit = options.edit
    path.add("input", "input", batch.input, "(B, 3, H, W)", (0, 1))
    path.add("input", "target", batch.target, "(B, 3, H, W)", (0, 1))
    path.add("input", "valid", batch.valid, "(B, 1, H, W)", (0, 1))
    found = [input_is_not_the_target(batch)]
    if edit.has_mask:
        path.add("input", "mask", batch.mask, "(B, 1, H, W)", (0, 1))
        found.append(mask_covers_the_change(batch))
    if edit.gains:
        found += [colour_round_trip(), gains_make_the_input(batch)]
    return found


def input_is_not_the_target(batch: EditingBatch) -> Check:
    """Of samples that are one picture twice nothing is learnt but to copy."""
    same = [name for i, name in enumerate(batch.ids) if torch.equal(batch.input[i], batch.target[i])]
    return Check(
        "input and target are two pictures",
        not same,
        "they differ in every sample",
        f"the same in {', '.join(same)}" if same else f"{len(batch)} of {len(batch)} differ",
        "the columns of the list, or the folders, name one file twice",
    )


def mask_covers_the_change(batch: EditingBatch) -> Check:
    """Outside the mask every result is the input's: what changes there can never be right."""
    change = (batch.input - batch.target).abs().amax(dim=1, keepdim=True)
    inside, outside = (change * part for part in (batch.mask, 1 - batch.mask))
    in_all = [float(one.square().sum()) for one in (inside, outside)]
    share = in_all[1] / max(sum(in_all), 1e-12)
    return Check(
        "the mask covers object and shadow",
        share <= 0.05,
        "at most 5 % of the squared change lies outside of it",
        f"{share:.1%}; the mask covers {float(batch.mask.mean()):.0%} of the picture",
        "draw masks around the shadow, too: white is all that the object changes",
    )


def gains_make_the_input(batch: EditingBatch) -> Check:
    """Where gains are known, that they are those of linear light, next to what they would give on sRGB values."""
    known = torch.isfinite(batch.gains).all(dim=1)
    name, wanted = "the gains make the input", f"mean difference at most {_GAIN_TOLERANCE:g}, in linear light"
    if not bool(known.any()):
        return Check(name, True, wanted, "no gains are stated", "")
    gains = torch.where(known[:, None], batch.gains, torch.ones_like(batch.gains))
    light = (cast(batch.target, gains) - batch.input).abs().flatten(1).mean(dim=1)
    encoded = ((batch.target * gains[..., None, None]).clamp(0, 1) - batch.input).abs().flatten(1).mean(dim=1)
    off, other = float(light[known].max()), float(encoded[known].max())
    return Check(
        name,
        off <= _GAIN_TOLERANCE,
        wanted,
        f"{off:.4f}; on sRGB values it would be {other:.4f}",
        "multiply linear light by the gains and encode it again, or leave the columns of gains out",
    )


def encoding(
    task: Task[Any],
    batch: EditingBatch,
    encoded: EncodedBatch,
    path: PathTable,
    *,
    config: Config,
    options: EditingOptions,
) -> list[Check]:
    """Latents finite, decoded range right, conditions in their places; a trained VAE gives the target back."""
    edit = options.edit
    parts = _parts(encoded)
    path.add("condition", "input latent", parts["input latent"], "(B, 4, h, w)", LATENT_LIMITS)
    if edit.has_mask:
        path.add("condition", "mask", parts["mask"], "(B, 1, h, w)", (0, 1))
    path.add("condition", "empty prompt", parts["empty prompt"], "(B, N, E)", TOKEN_LIMITS)
    path.add("condition", "valid latents", parts["valid"], "(B, 1, h, w)", (0, 1))
    path.add("VAE", "target latent (data)", encoded.data, "(B, 4, h, w)", LATENT_LIMITS)
    found = [latents_are_finite(encoded, torch.cat([encoded.data, parts["input latent"]]))]
    round_trip = decoded_target(task, batch, encoded, path, "target")
    found += [] if config.model.vae_is_random else [round_trip]
    found.append(prompt_is_right(parts["empty prompt"], config, options.empty_prompt))
    return [*found, *places(task, batch, has_mask=edit.has_mask)]


def places(task: Task[Any], batch: EditingBatch, *, has_mask: bool) -> list[Check]:
    """Each input reaches its own part of what the model sees, and no other: above all, the target none of it."""
    window = (..., slice(0, _CONDITION_SIDE), slice(0, _CONDITION_SIDE))
    pictures: dict[str, Any] = {name: getattr(batch, name)[window] for name in ("input", "target", "mask", "valid")}
    corner = replace(batch, **pictures)
    before = _parts(task.encode(corner))
    others: dict[str, dict[str, Any]] = {name: {name: _other(pictures[name])} for name in ("target", "input", "valid")}
    changed = {name: replace(corner, **other) for name, other in others.items()}
    wanted = {"target": ["data"], "input": ["input latent"], "valid": ["valid"]}
    if has_mask:
        changed["mask"], wanted["mask"] = replace(corner, mask=1 - corner.mask), ["mask"]
    gains = torch.where(torch.isfinite(batch.gains), batch.gains, torch.ones_like(batch.gains))
    changed["gains"], wanted["gains"] = replace(corner, gains=gains * 2), []
    moved = {}
    for name, other in changed.items():
        after = _parts(task.encode(other))
        moved[name] = [part for part in before if not torch.equal(before[part], after[part])]
    leaked = [part for name in ("target", "gains") for part in moved[name] if part != "data" or name == "gains"]
    wrong = [f"{name} -> {', '.join(found) or 'nothing'}" for name, found in moved.items() if found != wanted[name]]
    return [
        Check(
            "neither target nor gains reach the conditions",
            not leaked,
            "conditions bit-equal under another target and under other gains",
            f"moved: {', '.join(leaked) or 'none'}",
            "the answer is in the input: take it out of what Task.encode concatenates",
        ),
        Check(
            "each input has its own channels",
            not wrong,
            f"target in the data, input in channels 4-7{', mask in channel 8' if has_mask else ''}",
            "; ".join(wrong) or "the same",
            "Task.encode must join [x_t, input latent, mask] in this order: it is in the weights of every checkpoint",
        ),
    ]


def _parts(encoded: EncodedBatch) -> dict[str, Tensor]:
    given, told = encoded.conditions.concatenated, encoded.conditions.tokens
    assert given is not None and told is not None and encoded.valid is not None, "the editing task gives all three"
    found = {
        "data": encoded.data,
        "input latent": given[:, :LATENT_CHANNELS],
        "empty prompt": told,
        "valid": encoded.valid,
    }
    return found | ({"mask": given[:, LATENT_CHANNELS:]} if given.shape[1] > LATENT_CHANNELS else {})


def _other(picture: Tensor) -> Tensor:
    """Another picture in [0, 1] everywhere."""
    return torch.where(picture > 0.5, picture - 0.5, picture + 0.5)
