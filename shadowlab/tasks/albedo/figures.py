"""Picture grids of beauty, true albedo, one step and error, as they look on a screen.

What is not finite is magenta, and what is not valid is grey in the error.
"""

import torch
from PIL import Image
from torch import Tensor

from shadowlab.drawing import from_image, to_image, with_header
from shadowlab.tasks.albedo.samples import AlbedoBatch
from shadowlab.tasks.colour import converted

_WIDEST = 1024
_UNKNOWN = 0.5


def input_picture(batch: AlbedoBatch) -> Tensor:
    """The first sample's beauty, (3, H, W) in [0, 1], sRGB."""
    return converted(batch.beauty[0].cpu(), batch.space, "srgb")


def comparison_grid(batch: AlbedoBatch, prediction: Tensor, *, max_rows: int = 8) -> Tensor:
    """(3, H', W') in [0, 1]: columns beauty, albedo, one step, |error|; at most `max_rows` samples.

    prediction: (n, 3, H, W) in [0, 1], in the batch's space.
    """
    rows = []
    for i in range(min(max_rows, len(batch))):
        given = (batch.beauty[i], batch.albedo[i], prediction[i])
        beauty, albedo, predicted = (converted(one.cpu(), batch.space, "srgb") for one in given)
        error = torch.where(batch.valid[i].cpu() > 0, (albedo - predicted).abs(), _UNKNOWN)
        rows.append(torch.cat([beauty, albedo, predicted, error], dim=2))
    picture = to_image(torch.cat(rows, dim=1))
    if picture.width > _WIDEST:
        size = _WIDEST, round(picture.height * _WIDEST / picture.width)
        picture = picture.resize(size, Image.Resampling.BOX)
    return from_image(with_header(picture, ("beauty", "albedo", "one step", "error")))
