"""An object with its shadow on a background: the background, over it the shadow, over both the object.

So the shadow lies under the object and never on it. Intensity 0 leaves background and object as they are, to the bit.

Legend: H W pixels.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageColor
from torch import Tensor

from shadowlab.data import alpha_of, decode, one_line, read_file
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.object_picture import ObjectPicture, levels_of

Fit = Literal["same", "cover"]
Colour = tuple[int, int, int]
Array = np.ndarray[Any, Any]

TRANSPARENT = "transparent"
DEFAULT_INTENSITY = 0.7
MOST_INTENSITY = 2.0
_CHUNK = 2**20  # pixels that are computed at a time


@dataclass(frozen=True, eq=False)
class Background:
    """What the object stands on."""

    colour: Array
    """(H, W, 3) uint8."""
    alpha: Array | None
    """(H, W) float32 in [0, 1]; None where nothing is transparent."""


def read_background(given: str, height: int, width: int, fit: Fit = "same") -> Background:
    """The background that an option names.

    Args:
        given: `transparent`, a PNG or JPEG file, or a colour (`white`, `#dddddd`); a file comes before a colour.
        height, width: of the object's picture, pixels.
        fit: `same`: a file must have this size. `cover`: it is scaled until it covers it, and what juts out on both
            sides is cut off.

    Raises:
        UserError: it is none of these, or has another size.
    """
    if given == TRANSPARENT:
        return Background(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.float32))
    if not os.path.exists(given):  # also of a name that no file could have
        return Background(np.full((height, width, 3), parse_colour(given, "background"), np.uint8), None)
    where = one_line(given)
    image = decode(read_file(Path(given)), where)
    if (image.height, image.width) != (height, width):
        if fit == "same":
            raise UserError(
                f"{where}: {image.width} x {image.height} pixels, the object's picture has {width} x {height}; give a "
                "background of the same size, or --fit cover to scale it and cut off what juts out"
            )
        image = _covering(image, height, width)
    alpha: Tensor | None = alpha_of(image)
    is_opaque = alpha is None or bool((alpha == 1).all())
    return Background(levels_of(image), None if is_opaque or alpha is None else alpha[0].numpy())


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode.startswith("I"):
        image = Image.fromarray(levels_of(image))
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    larger = image.convert(mode).resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return larger.crop((left, top, left + width, top + height))


def composite(
    picture: ObjectPicture,
    shadow: Array,
    background: Background,
    intensity: float = DEFAULT_INTENSITY,
    colour: Colour = (0, 0, 0),
) -> Array:
    """The object with its shadow on the background, (H, W, 3) uint8; (H, W, 4) where the background has transparent
    parts.

    Values are mixed as they stand in the files (sRGB), not as light.

    Args:
        picture: object (H, W).
        shadow: (H, W) in [0, 1], bright = shadow.
        intensity: the map is multiplied by it and cut off at 1; in [0, 2].
        colour: of a full shadow, 0 .. 255.

    Raises:
        UserError: sizes differ, or intensity is out of range.
    """
    check_intensity(intensity)
    height, width = picture.size
    if shadow.shape != (height, width) or background.colour.shape[:2] != (height, width):
        raise UserError(f"{picture.name}: {width} x {height} pixels, but shadow or background has another size")
    levels, coverage = picture.colours, picture.coverage
    channels = 3 if background.alpha is None else 4
    result = np.empty((height, width, channels), np.uint8)
    rows = max(1, _CHUNK // width)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        result[part] = _mixed(
            levels[part],
            coverage[part],
            np.clip(shadow[part].astype(np.float64) * intensity, 0.0, 1.0)[..., None],
            background.colour[part],
            None if background.alpha is None else background.alpha[part],
            np.asarray(colour, np.float64),
        )
    return result


def _mixed(levels: Array, matte: Array, strength: Array, ground: Array, alpha: Array | None, colour: Array) -> Array:
    """One piece of it; matte (h, W), strength (h, W, 1) in [0, 1]."""
    covered = matte.astype(np.float64)[..., None]
    if alpha is None:
        under = ground * (1 - strength) + colour * strength
        return np.round(under * (1 - covered) + levels * covered).astype(np.uint8)
    opacity = alpha.astype(np.float64)[..., None]
    under = ground * opacity * (1 - strength) + colour * strength  # premultiplied, as is `mixed`
    opacity = opacity * (1 - strength) + strength
    mixed = under * (1 - covered) + levels * covered
    opacity = opacity * (1 - covered) + covered
    straight = np.divide(mixed, opacity, out=np.zeros_like(mixed), where=opacity > 0)
    return np.round(np.concatenate([straight, opacity * 255], axis=2)).astype(np.uint8)


def map_levels(shadow: Array) -> Array:
    """A shadow map (H, W) in [0, 1] as grey levels, uint8."""
    return np.round(shadow * np.float32(255)).astype(np.uint8)


def check_intensity(intensity: float) -> None:
    """Raise UserError unless it is in [0, 2]."""
    if not 0.0 <= intensity <= MOST_INTENSITY:  # NaN fails, too
        raise UserError(f"intensity = {intensity:g} is outside [0, {MOST_INTENSITY:g}]; correct the value")


def parse_colour(text: str, what: str) -> Colour:
    """`black`, `#334455` or `rgb(1, 2, 3)` as levels.

    Raises:
        UserError: it is no opaque colour.
    """
    try:
        levels = ImageColor.getrgb(text)
    except ValueError:
        levels = (0, 0, 0, 0)
    if len(levels) == 4:  # the fourth is alpha
        kind = "colour (black, #334455)" if what != "background" else "file and no colour (white, #dddddd)"
        raise UserError(f"{what} {one_line(text)[:200]!r}: no such {kind}; correct it")
    return levels
