"""Picture grids: a row a sample with object, target, one step and error; and a row a condition of the light.

What is not finite is magenta everywhere, as in the heat maps: black would be "no shadow".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shadowlab.charts import NOT_FINITE_COLOUR
from shadowlab.tasks.shadow.samples import Batch

_HEADER = 18  # pixels above the columns for their names
_SWEEP_WIDTH = 1152
_LEAST_CELL = 80


def comparison_grid(batch: Batch, target: Tensor, prediction: Tensor, *, max_rows: int = 8) -> Tensor:
    """(3, H', W') in [0, 1]: columns object, target, one step, |error|; at most `max_rows` samples, 1024 px wide.

    target, prediction: (n, 1, H, W) in [0, 1].
    """
    rows = []
    for i in range(min(max_rows, len(batch.ids))):
        target_i, prediction_i = target[i].cpu(), prediction[i].cpu()
        grey = [target_i, prediction_i, (target_i - prediction_i).abs()]
        cells = [(batch.object_image[i].cpu() + 1) / 2, *(cell.expand(3, -1, -1) for cell in grey)]
        rows.append(torch.cat(cells, dim=2))
    picture = _to_image(torch.cat(rows, dim=1))
    if picture.width > 1024:
        picture = picture.resize((1024, round(picture.height * 1024 / picture.width)), Image.Resampling.BOX)
    return _from_image(_with_header(picture, ("object", "target", "one step", "error")))


def sweep_grid(object_image: Tensor, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
    """(3, H', W') in [0, 1]: a row a condition; the object, then its shadows with the condition's value over each.

    object_image: (3, H, W) in [-1, 1]. sweep: condition to (value, (1, H, W) in [0, 1]), as `FixedGrid.light_sweep`.
    """
    across = 1 + max(len(row) for row in sweep.values())
    side = min(object_image.shape[-1], _SWEEP_WIDTH // across)
    side = max(side, _LEAST_CELL)  # a value has to fit over its picture
    canvas = Image.new("RGB", (side * across, (side + _HEADER) * len(sweep)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, (name, row) in enumerate(sweep.items()):
        y = number * (side + _HEADER)
        cells = [("object", (object_image + 1) / 2), *((f"{name} {v:.4g}", p.expand(3, -1, -1)) for v, p in row)]
        for column, (text, cell) in enumerate(cells):
            draw.text((column * side + 4, y + 2), text, fill="black", font=font)
            picture = _to_image(cell)
            canvas.paste(picture.resize((side, side), Image.Resampling.BOX), (column * side, y + _HEADER))
    return _from_image(canvas)


def save_picture(picture: Tensor, path: Path) -> None:
    """Write (3, H, W) in [0, 1] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _to_image(picture).save(path)


def _with_header(picture: Image.Image, names: tuple[str, ...]) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + _HEADER), "white")
    canvas.paste(picture, (0, _HEADER))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, name in enumerate(names):
        draw.text((column * picture.width / len(names) + 4, 2), name, fill="black", font=font)
    return canvas


def _to_image(picture: Tensor) -> Image.Image:
    """Of (3, H, W): [0, 1] as colours, and the colour of what is not finite where any channel is that."""
    values = picture.detach().cpu().float()
    array = (values.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    array[~values.isfinite().all(dim=0)] = torch.tensor(NOT_FINITE_COLOUR, dtype=torch.uint8)
    return Image.fromarray(array.numpy())


def _from_image(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
