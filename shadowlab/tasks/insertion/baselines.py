"""Insertions without a model, that a model must beat: the mean of what is around, and the object's own picture, scaled
into the mask's box and pasted.

Legend: B batch, H W pixels.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowlab.tasks.insertion.layout import composited
from shadowlab.tasks.insertion.samples import InsertionBatch

COPY_PASTE = "copy-paste"


def mean_fill(batch: InsertionBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: inside the mask each channel's mean of what lies outside, mid grey where nothing does."""
    outside = 1 - batch.mask
    count = outside.flatten(2).sum(dim=2)
    means = (batch.target * outside).flatten(2).sum(dim=2) / count.clamp_min(1.0)
    means = torch.where(count > 0, means, 0.5)
    return composited(means[..., None, None].expand_as(batch.target), batch.target, batch.mask)


def copy_paste(batch: InsertionBatch) -> Tensor:
    """(B, 3, H, W) in [0, 1]: the object's picture as large as the mask's box allows, in its middle, on the mean."""
    pasted = []
    for filled, own, mask in zip(mean_fill(batch), batch.object, batch.mask, strict=True):
        (top, bottom), (left, right) = (_extent(mask[0].any(dim=axis)) for axis in (1, 0))
        height, width = bottom - top, right - left
        side = min(height, width)
        small = F.interpolate(own[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
        made = filled.clone()
        y, x = top + (height - side) // 2, left + (width - side) // 2
        made[:, y : y + side, x : x + side] = small
        pasted.append(made)
    return composited(torch.stack(pasted), batch.target, batch.mask)


def _extent(found: Tensor) -> tuple[int, int]:
    """First and last + 1 of what is true; found: (n,) bool. Its shape does not depend on values, which a plan lacks."""
    return int(found.int().argmax()), len(found) - int(found.flip(0).int().argmax())


BASELINES: Mapping[str, Callable[[InsertionBatch], Tensor]] = {"mean fill": mean_fill, COPY_PASTE: copy_paste}
"""Name for people -> batch to picture."""
