"""From pictures of any size to the square tensors that the model sees.

Legend: C channels, H W pixels of the file, S image size.

The order is: threshold the mask, composite, resize, threshold the resized mask, composite again. Resizing first
would mix pixels from outside the mask (among them the object's own shadow) into the object's rim; the first
composite removes them beforehand, the second makes the background exactly constant outside the resized mask.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowlab.data.decoding import BACKGROUND, MASK_THRESHOLD
from shadowlab.errors import UserError
from shadowlab.settings import MAX_IMAGE_SIZE


def check_image_size(image_size: int) -> None:
    """Raise UserError unless `image_size` is a positive multiple of 8, the VAE's reduction, of at most 4096."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 8 or image_size % 8:
        raise UserError(f"image_size = {image_size} must be a positive multiple of 8, such as 512")
    if image_size > MAX_IMAGE_SIZE:
        raise UserError(f"image_size = {image_size} must be at most {MAX_IMAGE_SIZE}")


def composite(rgb: Tensor, mask: Tensor, background: float = BACKGROUND) -> Tensor:
    """`rgb` where the mask is 1, `background` elsewhere; what lies outside the mask, NaN included, is gone.

    Args:
        rgb: (..., 3, H, W) in [-1, 1].
        mask: (..., 1, H, W) in {0, 1}, already thresholded.
        background: grey value in [-1, 1]; 0.0 is mid grey.
    """
    return torch.where(mask > 0, rgb, torch.full_like(rgb, background))


def fit_square(image: Tensor, image_size: int, fill: float) -> Tensor:
    """(C, H, W) -> (C, S, S): the longer side becomes S, the aspect stays, the rest is `fill` on both sides.

    Antialiased bilinear, whose weights are positive: values stay within those of the file.
    """
    height, width = image.shape[-2:]
    return _fit_strips([image], height, width, image_size, fill)


def unfit_square(square: Tensor, height: int, width: int) -> Tensor:
    """(C, S, S) -> (C, H, W): what `fit_square` made of a picture of this size, less its borders, at its size again.

    Bilinear, antialiased where it becomes smaller: values stay within those of the square.
    """
    new_height, new_width = _fitted(height, width, square.shape[-1])
    top, left = (square.shape[-1] - new_height) // 2, (square.shape[-1] - new_width) // 2
    inner = square[..., top : top + new_height, left : left + new_width]
    low, high = inner.aminmax()
    return _resize(inner, height, width).clamp(low, high)


def _fitted(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Rows and columns that a picture takes of its square."""
    longer = max(height, width)
    return max(round(height * image_size / longer), 1), max(round(width * image_size / longer), 1)


def _fit_strips(strips: Iterable[Tensor], height: int, width: int, image_size: int, fill: float) -> Tensor:
    """`fit_square` of an image that comes from top to bottom in strips (C, some rows, W).

    Columns are resized strip by strip and rows at last, as torch does it within one call: the same numbers.
    """
    new_height, new_width = _fitted(height, width, image_size)
    narrow: list[Tensor] = []
    lows, highs = [], []
    for strip in strips:
        low, high = strip.aminmax()
        lows.append(low)
        highs.append(high)
        narrow.append(_resize(strip, strip.shape[-2], new_width))
    image = _resize(torch.cat(narrow, dim=1), new_height, new_width)
    image = image.clamp(min(lows), max(highs))  # the rounding of the weights alone
    rows, columns = image_size - new_height, image_size - new_width
    return F.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=fill)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def fit_object(rgb: Tensor, mask: Tensor, image_size: int, where: str) -> tuple[Tensor, Tensor]:
    """Object image and mask at the model's size, free of every pixel outside the mask.

    Args:
        rgb: (3, H, W) in [-1, 1].
        mask: (1, H, W) in {0, 1}.
        image_size: S, pixels.
        where: sample or file, for the message.

    Returns:
        object image (3, S, S) in [-1, 1], BACKGROUND wherever the mask is 0; mask (1, S, S) in {0, 1}.

    Raises:
        UserError: the object is so small that nothing of its mask is left at this size.
    """
    return fit_object_strips([rgb], mask, image_size, where)


def fit_object_strips(strips: Iterable[Tensor], mask: Tensor, image_size: int, where: str) -> tuple[Tensor, Tensor]:
    """`fit_object` of an object image that comes from top to bottom in strips (3, some rows, W)."""
    small_mask = (fit_square(mask, image_size, 0.0) >= MASK_THRESHOLD).float()
    if not small_mask.any():
        raise UserError(
            f"{where}: the mask is empty at {image_size} x {image_size}; crop to the object or raise image_size"
        )
    height, width = mask.shape[-2:]
    small_rgb = _fit_strips(_composited(strips, mask), height, width, image_size, BACKGROUND)
    return composite(small_rgb, small_mask), small_mask


def _composited(strips: Iterable[Tensor], mask: Tensor) -> Iterator[Tensor]:
    top = 0
    for strip in strips:
        bottom = top + strip.shape[-2]
        yield composite(strip, mask[:, top:bottom])
        top = bottom
