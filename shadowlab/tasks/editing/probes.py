"""One input changed: a little, so that the model's answer is seen, or wholly, to prove that a result comes from it.

Legend: B batch, H W pixels, h w latents (H/8).
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from shadowlab.encoded_batch import LATENT_CHANNELS, EncodedBatch
from shadowlab.tasks.editing.edits import Edit
from shadowlab.tasks.editing.samples import EditingBatch
from shadowlab.tasks.exchange import farthest
from shadowlab.tasks.task import Ablation, Probe, Reach

_PALER = 0.9


def probes(edit: Edit, encoded: EncodedBatch, reach: Reach) -> list[Probe]:
    """Of the input's latents (B, 4, h, w), whatever their size: a tenth off, or their opposite. Far, the mask (B, 1, h,
    w), too: what it leaves out. Near, it is not asked for: its channel starts at zero."""
    own = encoded.conditions.concatenated
    assert own is not None, "the editing task concatenates the input"
    given, rest = own[:, :LATENT_CHANNELS], own[:, LATENT_CHANNELS:]
    factor = _PALER if reach == "near" else -1.0
    changed = encoded.with_conditions(concatenated=torch.cat([given * factor, rest], dim=1))
    found = [Probe("input", encoded, changed, f"to {factor:g} times its latents")]
    if edit.has_mask and reach == "far":
        masked = encoded.with_conditions(concatenated=torch.cat([given, 1 - rest], dim=1))
        found.append(Probe("mask", encoded, masked, "to what it leaves out"))
    return found


def ablations(edit: Edit, batch: EditingBatch, encode: Callable[[EditingBatch], EncodedBatch]) -> list[Ablation]:
    """The input exchanged among samples, or mid grey; the mask exchanged, or empty. batch: two samples or more."""
    shift = farthest(batch.input, batch.target)
    exchanged = None if shift is None else encode(replace(batch, input=batch.input.roll(shift, 0)))
    removed = encode(replace(batch, input=torch.full_like(batch.input, 0.5)))
    found = [Ablation("input", exchanged, removed, belongs_to="object")]
    if edit.has_mask:
        shift = farthest(batch.mask, batch.mask)
        other = None if shift is None else encode(replace(batch, mask=batch.mask.roll(shift, 0)))
        empty = encode(replace(batch, mask=torch.zeros_like(batch.mask)))
        found.append(Ablation("mask", other, empty))
    return found
