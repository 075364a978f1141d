"""A user's own picture under a light of their choice, as the command line takes it.

Legend: S image size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shadowlab.data import check_image_size, decode, fit_object_strips, object_strips, one_line, read_file, read_mask
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import check_light
from shadowlab.tasks.shadow.samples import Picture

_FILES, _LIGHT = ("object", "mask"), ("theta", "phi", "size")
_OTHER_LIGHT = (
    "to see a sample under another light, name its files: --object DATA/objects/ID.png --mask DATA/masks/ID.png"
)


def requested_picture(given: Mapping[str, Any], image_size: int) -> Picture | None:
    """The picture that options ask for: object, mask, theta, phi, size; None where none of them is given.

    Args:
        given: option to value, None where it was not given; `sample`, a data set's, excludes the others.
        image_size: S, pixels.

    Raises:
        UserError: some are given and others not, or a file or value is wrong.
    """
    missing = {name for name in (*_FILES, *_LIGHT) if given.get(name) is None}
    if len(missing) == 5:
        return None
    if given.get("sample") is not None:
        raise UserError(
            "--sample and your own picture (--object --mask --theta --phi --size) exclude each other: a sample has its "
            f"light in metadata.json; {_OTHER_LIGHT}"
        )
    if missing.issuperset(_FILES):
        raise UserError(
            f"--theta --phi --size are the light of your own picture: add --object FILE --mask FILE; {_OTHER_LIGHT}"
        )
    if missing.intersection(_FILES):
        raise UserError("your own picture needs both --object FILE and --mask FILE")
    if missing:
        raise UserError("your own picture needs its light: --theta 0..45 --phi 0..360 --size 2..8")
    theta, phi, size = (given[name] for name in _LIGHT)
    return load_picture(given["object"], given["mask"], theta, phi, size, image_size)


def load_picture(
    object_path: str | Path, mask_path: str | Path, theta: float, phi: float, size: float, image_size: int
) -> Picture:
    """A user's own picture with its mask and a chosen light.

    Both files are PNG or JPEG of equal size; see `fit_square` for pictures that are not square.

    Args:
        object_path: photograph or render of the object; its background does not matter.
        mask_path: white = object, thresholded at 0.5.
        theta: polar angle, degrees in [0, 45].
        phi: azimuth, degrees in [0, 360].
        size: side of the square light, scene units in [2, 8].
        image_size: S, pixels, a multiple of 8.

    Returns:
        A Picture with object_image (3, S, S), mask (1, S, S), light (3,), all float32; id = stem of the object file.

    Raises:
        UserError: naming the file or value.
    """
    check_image_size(image_size)
    object_path, mask_path = Path(object_path), Path(mask_path)
    where = one_line(str(object_path))
    check_light(theta, phi, size, where)
    image = decode(read_file(object_path), where)
    mask = read_mask(read_file(mask_path), one_line(str(mask_path)))
    if image.size != (mask.shape[-1], mask.shape[-2]):
        raise UserError(
            f"{where}: {image.width} x {image.height} pixels, but its mask {one_line(str(mask_path))} has "
            f"{mask.shape[-1]} x {mask.shape[-2]}; give a mask of the same size"
        )
    object_image, small_mask = fit_object_strips(object_strips(image), mask, image_size, where)
    light = torch.tensor([theta, phi, size], dtype=torch.float32)
    return Picture(id=object_path.stem, object_image=object_image, mask=small_mask, light=light)
