"""Picture grids of what is given, object, target, one step and error. What is not finite is magenta."""

import torch
from PIL import Image
from torch import Tensor

from shadowlab.drawing import from_image, to_image, with_header
from shadowlab.tasks.insertion.layout import composited, masked_picture
from shadowlab.tasks.insertion.samples import InsertionBatch

_WIDEST = 1024
COLUMNS = ("given", "object", "target", "one step", "error")


def given_picture(batch: InsertionBatch, i: int = 0) -> Tensor:
    """Of sample i, (3, H, W) in [0, 1]: the target with grey in the mask."""
    return (masked_picture(batch.target[i : i + 1], batch.mask[i : i + 1])[0].cpu() + 1) / 2


def input_picture(batch: InsertionBatch) -> Tensor:
    """The first sample's given picture next to its object, (3, H, 2W) in [0, 1]."""
    return torch.cat([given_picture(batch), batch.object[0].cpu()], dim=2)


def comparison_grid(batch: InsertionBatch, prediction: Tensor, *, max_rows: int = 8) -> Tensor:
    """(3, H', W') in [0, 1]: `COLUMNS` of at most `max_rows` samples. prediction: (n, 3, H, W) in [0, 1]."""
    rows = []
    for i in range(min(max_rows, len(batch))):
        target, own = batch.target[i].cpu(), batch.object[i].cpu()
        made = composited(prediction[i].cpu(), target, batch.mask[i].cpu())
        rows.append(torch.cat([given_picture(batch, i), own, target, made, (target - made).abs()], dim=2))
    picture = to_image(torch.cat(rows, dim=1))
    if picture.width > _WIDEST:
        size = _WIDEST, round(picture.height * _WIDEST / picture.width)
        picture = picture.resize(size, Image.Resampling.BOX)
    return from_image(with_header(picture, COLUMNS))
