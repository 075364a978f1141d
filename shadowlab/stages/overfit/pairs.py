"""Proof that what is memorised is what was read: each sample is encoded as itself, whatever stands next to it.

A fault that exchanges inputs among the samples of a batch is memorised like any other pairing, for the batch is encoded
once. Here some samples are read again, alone.
"""

from collections.abc import Sequence
from typing import Any

import torch

from shadowlab.data import SampleSet
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.tasks import Task

TOLERANCE = 0.02
"""Of a tensor's norm: a VAE of batches of one, or in TF32, differs by 1e-3; another sample's picture by about 1."""
_MOST = 4  # samples that are read again, the first and the last among them


def first_stranger(
    task: Task[Any], dataset: SampleSet[Any], chosen: Sequence[int], encoded: EncodedBatch, place: str
) -> str | None:
    """What of which sample is not its own, in words; None where all are.

    Args:
        dataset: the samples that `chosen` numbers. encoded: all of the chosen ones, in their order.
        place: where `encoded` comes from, for people.
    """
    count = len(chosen)
    rows = sorted({round(k * (count - 1) / max(1, _MOST - 1)) for k in range(_MOST)})
    for row in rows:
        alone = task.encode(task.collate([dataset[chosen[row]]]), torch.tensor([row]))
        own = encoded.select(torch.tensor([row]))
        if alone.ids != own.ids:
            return f"{place}: sample {alone.ids[0]} stands where {own.ids[0]} should"
        for name, tensor in alone.tensors().items():
            other = own.tensors().get(name)
            if other is None or other.shape != tensor.shape:
                return f"{place}: {name} of {alone.ids[0]} has another shape than alone"
            off = float((other.float() - tensor.float()).norm()) / (float(tensor.float().norm()) or 1.0)
            if not off <= TOLERANCE:
                return (
                    f"{place}: {name} of {alone.ids[0]} is not that of the sample alone (off by {off:.0%} of its "
                    f"norm): {_whose(task, dataset, chosen, other, name, row)}"
                )
    return None


def _whose(task: Task[Any], dataset: SampleSet[Any], chosen: Sequence[int], found: Any, name: str, row: int) -> str:
    for number, index in enumerate(chosen):
        if number == row:
            continue
        alone = task.encode(task.collate([dataset[index]]), torch.tensor([number])).tensors().get(name)
        if alone is not None and torch.allclose(alone.float(), found.float(), atol=1e-2):
            return f"it is that of sample {number} of the batch; look at collate, encode and what reorders a batch"
    return "it depends on what stands next to it; look at collate, encode and what mixes a batch"
