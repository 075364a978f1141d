"""The beauty changed: a little, so that the model's answer is seen, or wholly, to prove that a result comes from it.

Legend: B batch, H W pixels, h w latents (H/8).
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.tasks.albedo.samples import AlbedoBatch
from shadowlab.tasks.exchange import farthest
from shadowlab.tasks.task import Ablation, Probe, Reach

_PALER = 0.9


def beauty_probe(encoded: EncodedBatch, reach: Reach) -> Probe:
    """Of the beauty's latents (B, 4, h, w), whatever their size: a tenth off, or their opposite."""
    own = encoded.conditions.concatenated
    assert own is not None, "the albedo task concatenates the beauty"
    factor = _PALER if reach == "near" else -1.0
    change = f"to {factor:g} times its latents"
    return Probe("beauty", encoded, encoded.with_conditions(concatenated=own * factor), change)


def ablations(batch: AlbedoBatch, encode: Callable[[AlbedoBatch], EncodedBatch]) -> list[Ablation]:
    """The beauty exchanged among samples of other objects as far as it goes, or mid grey. batch: two samples or more.

    Exchanged with a sample whose albedo is another: pictures of one object under two lights have the same answer.
    """
    shift = farthest(batch.beauty, batch.albedo)
    exchanged = None if shift is None else encode(replace(batch, beauty=batch.beauty.roll(shift, 0)))
    removed = encode(replace(batch, beauty=torch.full_like(batch.beauty, 0.5)))
    return [Ablation("beauty", exchanged, removed, belongs_to="object")]
