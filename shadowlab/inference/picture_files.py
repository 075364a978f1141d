"""Pictures that a command takes and writes, whatever it makes of them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from diagnostics.files import reason_of, replace
from shadowlab.data import PICTURE_ENDINGS, one_line
from shadowlab.errors import UserError


def picture_files(image: Path, out: Path) -> list[tuple[Path, Path]]:
    """Each picture and its result's file.

    Args:
        image: a file, or a folder of PNG and JPEG files.
        out: a PNG file; of a folder, a folder: files keep their names.

    Raises:
        UserError: the folder has no picture, two results would have one name, or `out` is no PNG.
    """
    if not image.is_dir():
        if out.suffix.lower() != ".png":
            raise UserError(f"{one_line(str(out))}: results are PNG files; end the name in .png")
        return [(image, out)]
    found = sorted(one for one in image.iterdir() if one.suffix.lower() in PICTURE_ENDINGS and one.name[0] != ".")
    if not found:
        raise UserError(f"{one_line(str(image))}: no PNG or JPEG picture in it")
    names = [f"{one.stem}.png" for one in found]
    if len(set(names)) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{one_line(str(image))}: two pictures would be written to {one_line(twin)}; rename one")
    return [(one, out / name) for one, name in zip(found, names, strict=True)]


def require_new(files: Sequence[Path], *, overwrite: bool) -> None:
    """Raise UserError where a result's file is there already and may not be replaced."""
    for file in files:
        if file.exists() and not overwrite:
            raise UserError(f"{one_line(str(file))}: is there already; choose another name, or --overwrite")


def save_levels(file: Path, levels: np.ndarray) -> None:
    """Write a PNG. levels: (H, W, 3), uint8, or floats in [0, 1].

    Raises:
        UserError: it cannot be written.
    """
    if levels.dtype != np.uint8:
        levels = np.round(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    encoded = BytesIO()
    Image.fromarray(levels).save(encoded, "PNG")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, encoded.getvalue())
    except OSError as error:
        raise UserError(f"{one_line(str(file))}: cannot be written ({reason_of(error)}); give another place") from None
