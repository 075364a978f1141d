"""A picture of an object with its matte, at its own size, from files or from Python.

Legend: H W pixels of the picture after its EXIF orientation, S image size.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shadowlab.data import (
    MASK_THRESHOLD,
    alpha_of,
    colour_levels,
    decode,
    fit_object_strips,
    given_array,
    given_image,
    matte_of,
    object_strips,
    one_line,
    read_file,
    read_matte,
    unit_values,
    upright,
)
from shadowlab.errors import UserError


@dataclass(frozen=True, eq=False)
class ObjectPicture:
    """An object, and where in its picture it is."""

    name: str
    """For messages: the file, or `object_image`."""
    image: Image.Image
    """Upright; transparent parts count as background."""
    matte: Tensor
    """(1, H, W) float32 in [0, 1]: how much of each pixel the object covers. Some of it reaches 0.5, not all."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width

    @cached_property
    def colours(self) -> np.ndarray:
        """(H, W, 3) uint8, as in the file, also where it is transparent."""
        return levels_of(self.image)

    @cached_property
    def coverage(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]: the matte, less what is transparent in the picture itself."""
        alpha = alpha_of(self.image)
        return (self.matte if alpha is None else torch.minimum(self.matte, alpha))[0].numpy()

    def fitted(self, image_size: int) -> tuple[Tensor, Tensor]:
        """What the model is given: object (3, S, S) in [-1, 1] and mask (1, S, S) in {0, 1}, letterboxed as a sample of
        a data set is.

        Raises:
            UserError: nothing of the mask is left at this size.
        """
        mask = (self.matte >= MASK_THRESHOLD).float()
        return fit_object_strips(object_strips(self.image), mask, image_size, self.name)


def read_object_picture(object_path: str | Path, mask_path: str | Path | None = None) -> ObjectPicture:
    """An object from files, PNG or JPEG.

    Args:
        mask_path: white = object; None: the alpha of the object's picture is the mask. Soft values are kept.

    Raises:
        UserError: naming the file.
    """
    where = one_line(str(object_path))
    image = decode(read_file(Path(object_path)), where)
    if mask_path is None:
        return ObjectPicture(where, image, _own_alpha(image, where))
    mask_where = one_line(str(mask_path))
    return _joined(image, read_matte(read_file(Path(mask_path)), mask_where), where, mask_where)


def object_picture(object_image: Any, mask: Any = None) -> ObjectPicture:
    """An object from Python.

    Args:
        object_image: a path; a picture of pillow, whose EXIF orientation is followed; an array or tensor (H, W, 3) or
            (H, W, 4), uint8 or float in [0, 1].
        mask: likewise, (H, W) or (H, W, 1), also bool; None: the alpha of `object_image`.

    Raises:
        UserError: it is none of these, or of another size than the mask; the mask is empty or full.
    """
    if isinstance(object_image, str | Path) and (mask is None or isinstance(mask, str | Path)):
        return read_object_picture(object_image, mask)
    image = given_image(object_image, "object_image", (3, 4))
    if mask is None:
        return ObjectPicture("object_image", image, _own_alpha(image, "object_image"))
    if isinstance(mask, str | Path):
        return _joined(image, read_matte(read_file(Path(mask)), one_line(str(mask))), "object_image", str(mask))
    return _joined(image, _matte(mask), "object_image", "mask")


def levels_of(image: Image.Image) -> np.ndarray:
    """The colours of a decoded picture, (H, W, 3) uint8; alpha is left out."""
    return colour_levels(image).permute(1, 2, 0).numpy()


def _joined(image: Image.Image, matte: Tensor, where: str, mask_where: str) -> ObjectPicture:
    if (image.height, image.width) != tuple(matte.shape[1:]):
        raise UserError(
            f"{where}: {image.width} x {image.height} pixels, but its mask {mask_where} has "
            f"{matte.shape[2]} x {matte.shape[1]}; give a mask of the same size"
        )
    return ObjectPicture(where, image, matte)


def _own_alpha(image: Image.Image, where: str) -> Tensor:
    alpha = alpha_of(image)
    if alpha is None or bool((alpha == 1).all()):
        raise UserError(f"{where}: no mask was given and the picture has no transparent part; give a mask")
    return _judged(alpha, f"{where}: its alpha")


def _judged(matte: Tensor, where: str) -> Tensor:
    mask = matte >= MASK_THRESHOLD
    if not mask.any():
        raise UserError(f"{where} is an empty mask: nothing reaches 0.5 (128 of 255); mark the object")
    if mask.all():
        raise UserError(f"{where} is a full mask: it marks every pixel as object; mark the object alone")
    return matte


def _matte(mask: Any) -> Tensor:
    if isinstance(mask, Image.Image):
        turned = upright(mask, "mask")
        if isinstance(turned, Image.Image):
            return matte_of(turned, "mask")
        mask = turned
    array = given_array(mask, "mask")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"mask: {array.shape} is not (height, width)")
    return _judged(torch.from_numpy(unit_values(array, "mask"))[None], "mask")
