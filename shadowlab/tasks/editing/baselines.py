"""Edits without a model, that a model must beat.

Legend: B batch, H W pixels. All take a batch and give (B, 3, H, W) in [0, 1].
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shadowlab.tasks.editing.edits import EditName
from shadowlab.tasks.editing.samples import EditingBatch
from shadowlab.tasks.editing.white_balance import grey_world, max_rgb

INPUT = "the input"


def copied(batch: EditingBatch) -> Tensor:
    """(B, 3, H, W): the input as it is."""
    return batch.input


def mean_fill(batch: EditingBatch) -> Tensor:
    """(B, 3, H, W): inside the mask the mean colour of what is outside of it."""
    outside = (1 - batch.mask) * batch.valid
    count = outside.flatten(2).sum(dim=2).clamp_min(1.0)
    mean = (batch.input * outside).flatten(2).sum(dim=2) / count
    return torch.where(batch.mask > 0, mean[..., None, None].expand_as(batch.input), batch.input)


BASELINES: dict[EditName, Mapping[str, Callable[[EditingBatch], Tensor]]] = {
    "white-balance": {
        INPUT: copied,
        "grey-world": lambda batch: grey_world(batch.input, batch.valid),
        "max-RGB": lambda batch: max_rgb(batch.input, batch.valid),
    },
    "object-removal": {INPUT: copied, "mean fill": mean_fill},
    "paint-to-image": {"the painting": copied},
}
"""Name for people -> batch to pictures."""
