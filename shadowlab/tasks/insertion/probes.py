"""Conditions changed: a little, so that the model's answer is seen, or wholly, to prove that a result comes from them.

Legend: B batch, H W pixels, h w latents of one picture.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.tasks.insertion.layout import halves, joined
from shadowlab.tasks.insertion.options import Beside
from shadowlab.tasks.insertion.samples import InsertionBatch
from shadowlab.tasks.task import Ablation, Probe, Reach

_PALER = 0.9


def condition_probes(encoded: EncodedBatch, beside: Beside, reach: Reach) -> list[Probe]:
    """Of object, masked picture and mask each: a tenth off, or their opposite."""
    own = encoded.conditions.concatenated
    assert own is not None, "the insertion task concatenates mask and masked latents"
    (mask, masked), (blank, object_half) = ((half[:, :1], half[:, 1:]) for half in halves(own, beside))
    factor = _PALER if reach == "near" else -1.0
    other_mask = mask * factor if reach == "near" else 1 - mask

    def probe(name: str, mask: Tensor, masked: Tensor, object_half: Tensor, change: str) -> Probe:
        first, second = torch.cat([mask, masked], dim=1), torch.cat([blank, object_half], dim=1)
        changed = encoded.with_conditions(concatenated=joined(first, second, beside))
        return Probe(name, encoded, changed, change)

    times = f"to {factor:g} times its latents"
    return [
        probe("object", mask, masked, object_half * factor, times),
        probe("masked picture", mask, masked * factor, object_half, times),
        probe("mask", other_mask, masked, object_half, times if reach == "near" else "to its opposite"),
    ]


def ablations(batch: InsertionBatch, encode: Callable[[InsertionBatch], EncodedBatch]) -> list[Ablation]:
    """Object, given picture and mask exchanged among samples, the first two also taken out. batch: two samples or
    more."""
    shift = _farthest(batch.object)
    rolled = None if shift is None else encode(replace(batch, object=batch.object.roll(shift, 0)))
    greyed = encode(replace(batch, object=torch.full_like(batch.object, 0.5)))
    other = (
        None if (far := _farthest(batch.target)) is None else encode(replace(batch, target=batch.target.roll(far, 0)))
    )
    bare = encode(replace(batch, target=torch.full_like(batch.target, 0.5)))
    moved = None if (by := _farthest(batch.mask)) is None else encode(replace(batch, mask=batch.mask.roll(by, 0)))
    return [
        Ablation("object", rolled, greyed, belongs_to="object"),
        Ablation("masked picture", other, bare),
        Ablation("mask", moved, None),
    ]


def _farthest(pictures: Tensor) -> int | None:
    """The rotation of the batch that changes pictures (B, C, H, W) the most; None where all are the same."""
    flat = pictures.flatten(1).double()
    if not bool((flat != flat[:1]).any()):
        return None
    changes = [float((flat - flat.roll(shift, 0)).square().sum()) for shift in range(1, len(flat))]
    return 1 + max(range(len(changes)), key=changes.__getitem__)
