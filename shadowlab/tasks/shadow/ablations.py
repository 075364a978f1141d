"""Inputs of the shadow task exchanged among samples, or taken out, for the proof that a model uses each of them.

Legend: B batch, H W pixels. Light = (theta degrees, phi degrees, size scene units).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.tasks.shadow.light import RANGES, light_vector
from shadowlab.tasks.shadow.samples import Batch
from shadowlab.tasks.task import Ablation


def ablations(batch: Batch, encode: Callable[[Batch], EncodedBatch]) -> list[Ablation]:
    """Object, mask, theta, phi and size, in this order. batch: B samples.

    An exchanged angle or size comes from the sample that differs in it the most: see `_exchanged`. In place of the
    object stands the background, of the mask an empty one, of a number its mean.
    """
    light = batch.light.cpu()
    found = [
        _ablation("object", batch.object_image, lambda new: replace(batch, object_image=new), encode),
        _ablation("mask", batch.mask, lambda new: replace(batch, mask=new), encode),
    ]
    vectors = light_vector(light[:, :3].double()).chunk(3, dim=1)
    for column, (name, vector) in enumerate(zip(RANGES, vectors, strict=True)):
        rows = _exchanged(vector)

        def with_values(values: Tensor, column: int = column) -> EncodedBatch:
            changed = light.clone()
            changed[:, column] = values
            return encode(replace(batch, light=changed))

        mean = light[:, column].mean().expand(len(light))
        found.append(
            Ablation(
                name,
                None if rows is None else with_values(light[rows, column]),
                None if rows is None else with_values(mean),
            )
        )
    return found


def _ablation(
    name: str, pictures: Tensor, put: Callable[[Tensor], Batch], encode: Callable[[Batch], EncodedBatch]
) -> Ablation:
    """Of what each object has of its own. pictures: (B, ...), 0 where nothing is."""
    rows = _exchanged(pictures)
    empty = torch.zeros_like(pictures)
    return Ablation(
        name,
        None if rows is None else encode(put(pictures[rows])),
        encode(put(empty)) if bool((pictures != 0).any()) else None,
        belongs_to="object",
    )


def _exchanged(values: Tensor) -> Tensor | None:
    """The sample whose value each one is given, int64 (B,): a rotation of the batch, the one that changes the most.
    None where all are the same. values: (B, ...)."""
    flat = values.flatten(1).double()
    index = torch.arange(len(flat))
    changes = [float((flat - flat[index.roll(shift)]).square().sum()) for shift in range(1, len(flat))]
    best = max(range(len(changes)), key=changes.__getitem__, default=None)
    return None if best is None or changes[best] == 0 else index.roll(best + 1)
