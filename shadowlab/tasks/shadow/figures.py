"""Picture grids: a row a sample with object, target, one step and error; and a row a condition of the light.

What is not finite is magenta: black would be "no shadow".
"""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shadowlab.drawing import HEADER_HEIGHT, from_image, to_image, with_header
from shadowlab.tasks.shadow.samples import Batch

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
    picture = to_image(torch.cat(rows, dim=1))
    if picture.width > 1024:
        picture = picture.resize((1024, round(picture.height * 1024 / picture.width)), Image.Resampling.BOX)
    return from_image(with_header(picture, ("object", "target", "one step", "error")))


def sweep_grid(object_image: Tensor, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
    """(3, H', W') in [0, 1]: a row a condition; the object, then its shadows with the condition's value over each.

    object_image: (3, H, W) in [-1, 1]. sweep: condition to (value, (1, H, W) in [0, 1]), as `FixedGrid.sweep`.
    """
    across = 1 + max(len(row) for row in sweep.values())
    side = min(object_image.shape[-1], _SWEEP_WIDTH // across)
    side = max(side, _LEAST_CELL)  # a value has to fit over its picture
    canvas = Image.new("RGB", (side * across, (side + HEADER_HEIGHT) * len(sweep)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, (name, row) in enumerate(sweep.items()):
        y = number * (side + HEADER_HEIGHT)
        cells = [("object", (object_image + 1) / 2), *((f"{name} {v:.4g}", p.expand(3, -1, -1)) for v, p in row)]
        for column, (text, cell) in enumerate(cells):
            draw.text((column * side + 4, y + 2), text, fill="black", font=font)
            picture = to_image(cell)
            canvas.paste(picture.resize((side, side), Image.Resampling.BOX), (column * side, y + HEADER_HEIGHT))
    return from_image(canvas)
