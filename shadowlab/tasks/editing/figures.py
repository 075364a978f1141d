"""Picture grids of input, target, result and error.

What is not finite is magenta, and what is not valid is grey in the error.
"""

import torch
from PIL import Image
from torch import Tensor

from shadowlab.drawing import from_image, to_image, with_header
from shadowlab.tasks.editing.edits import Edit
from shadowlab.tasks.editing.metrics import finished
from shadowlab.tasks.editing.samples import EditingBatch

_WIDEST = 1024
_UNKNOWN = 0.5
_RIM = (1.0, 0.0, 1.0)


def input_picture(batch: EditingBatch, edit: Edit) -> Tensor:
    """The first sample's input, (3, H, W) in [0, 1]; with the outline of its mask."""
    return _outlined(batch, 0) if edit.has_mask else batch.input[0].cpu()


def comparison_grid(
    batch: EditingBatch, prediction: Tensor, edit: Edit, *, keep_input: bool, max_rows: int = 8
) -> Tensor:
    """(3, H', W') in [0, 1]: columns input, target, one step, |error|; at most `max_rows` samples.

    prediction: (n, 3, H, W) in [0, 1], as painted.
    """
    rows = []
    count = min(max_rows, len(batch))
    some = batch.select(torch.arange(count)).to("cpu")
    painted = prediction[:count].cpu()
    results = finished(edit.name, painted, some) if keep_input else painted
    for i in range(count):
        given = _outlined(some, i) if edit.has_mask else some.input[i]
        error = torch.where(some.valid[i] > 0, (some.target[i] - results[i]).abs(), _UNKNOWN)
        rows.append(torch.cat([given, some.target[i], results[i], error], dim=2))
    picture = to_image(torch.cat(rows, dim=1))
    if picture.width > _WIDEST:
        size = _WIDEST, round(picture.height * _WIDEST / picture.width)
        picture = picture.resize(size, Image.Resampling.BOX)
    return from_image(with_header(picture, ("input", "target", "one step", "error")))


def _outlined(batch: EditingBatch, i: int) -> Tensor:
    """The input (3, H, W) with a line a pixel wide around the mask."""
    mask = batch.mask[i : i + 1].cpu()
    rim = torch.nn.functional.max_pool2d(mask, 3, stride=1, padding=1)[0] - mask[0]
    return torch.where(rim > 0, torch.tensor(_RIM).view(3, 1, 1), batch.input[i].cpu())
