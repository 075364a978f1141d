"""Pictures that a user hands over in Python: paths, pictures of pillow, arrays, tensors.

Legend: H W pixels. Every reader raises UserError "where: what; fix".
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from shadowlab.data.decoding import decode
from shadowlab.data.sources import one_line, read_file
from shadowlab.errors import UserError

_LEAST_SIDE = 8


def given_image(value: Any, where: str, channels: tuple[int, ...]) -> Image.Image:
    """A picture, upright.

    Args:
        value: a path; a picture of pillow, whose EXIF orientation is followed; an array or tensor (H, W) or (H, W, C),
            uint8 or float in [0, 1].
        where: for messages.
        channels: that an array may have.
    """
    if isinstance(value, str | Path):
        return decode(read_file(Path(value)), one_line(str(value)))
    if isinstance(value, Image.Image):
        value = upright(value, where)
    if not isinstance(value, Image.Image):
        array = given_array(value, where)
        if array.ndim == 2:
            array = np.repeat(array[..., None], 3, axis=2)
        if array.ndim != 3 or array.shape[2] not in channels or array.size == 0:
            raise UserError(f"{where}: {array.shape} is not (height, width, 3 or 4)")
        if array.dtype != np.uint8:
            array = np.round(unit_values(array, where) * 255).astype(np.uint8)
        value = Image.fromarray(np.ascontiguousarray(array))
    if min(value.size) < _LEAST_SIDE:
        raise UserError(f"{where}: {value.width} x {value.height} pixels; each side must have at least {_LEAST_SIDE}")
    return value


def upright(image: Image.Image, where: str) -> Image.Image | np.ndarray:
    """A picture of pillow as `decode` leaves one of a file; one of floats (mode F) is an array."""
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:  # its file was opened, and is read only now
        raise UserError(f"{where}: cannot be read ({one_line(str(error))}); open it again") from error
    if image.mode == "F":
        return np.asarray(image)
    levels = np.asarray(image) if image.mode == "I" else np.zeros(1)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise UserError(f"{where}: values of {low} to {high} in a picture of mode I; 16 bits are 0 to 65535")
    return image


def given_array(value: Any, where: str) -> np.ndarray:
    """Anything that NumPy reads; of a tensor on any device."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{where}: {type(value).__name__} is no picture; give a path, a picture or an array") from error


def unit_values(array: np.ndarray, where: str) -> np.ndarray:
    """float32 in [0, 1] of uint8, bool or float values."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where}: values of type {array.dtype}; give uint8, or floats in [0, 1]")
    unit = array.astype(np.float32)
    if not ((unit >= 0) & (unit <= 1)).all():  # NaN fails, too
        raise UserError(f"{where}: values beyond [0, 1]; give uint8, or floats in [0, 1]")
    return unit
