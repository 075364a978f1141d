"""Picture grids: one row per sample, object / target / one step / error."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shadowlab.data.sample import Batch

_HEADER = 18  # pixels above the columns for their names


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
    grid = torch.cat(rows, dim=1).clamp(0, 1)
    picture = _to_image(grid)
    if picture.width > 1024:
        picture = picture.resize((1024, round(picture.height * 1024 / picture.width)), Image.Resampling.BOX)
    return _from_image(_with_header(picture, ("object", "target", "one step", "error")))


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
    array = (picture.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).numpy())


def _from_image(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
