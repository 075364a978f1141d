"""Pictures as tensors: drawn on, and written as PNG.

What is not finite is magenta everywhere, in heat maps too: black would be a value like any other.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diagnostics.files import create

NOT_FINITE_COLOUR = (255, 0, 160)
HEADER_HEIGHT = 18
"""Pixels above a column for its name."""


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W): [0, 1] as colours, and `NOT_FINITE_COLOUR` where any channel is not finite."""
    values = picture.detach().cpu().float()
    array = (values.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    array[~values.isfinite().all(dim=0)] = torch.tensor(NOT_FINITE_COLOUR, dtype=torch.uint8)
    return Image.fromarray(array.numpy())


def from_image(picture: Image.Image) -> Tensor:
    """-> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def save_picture(picture: Tensor, path: Path) -> None:
    """Write (3, H, W) in [0, 1] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with create(path) as file:
        to_image(picture).save(file, "PNG")


def with_header(picture: Image.Image, names: tuple[str, ...]) -> Image.Image:
    """The picture below a line with the names of its columns of equal width."""
    canvas = Image.new("RGB", (picture.width, picture.height + HEADER_HEIGHT), "white")
    canvas.paste(picture, (0, HEADER_HEIGHT))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, name in enumerate(names):
        draw.text((column * picture.width / len(names) + 4, 2), name, fill="black", font=font)
    return canvas
