"""What the page shows, without the page: objects that were dropped, and their shadows under a light.

Legend: H W pixels of what is shown, S image size of the model.
"""

import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diagnostics.files import reason_of, sha256_of
from shadowlab.data import unfit_square
from shadowlab.errors import UserError
from shadowlab.tasks.shadow import (
    Background,
    Light,
    ObjectPicture,
    PreparedObject,
    ShadowGenerator,
    composite,
    map_levels,
    parse_colour,
    read_background,
    read_object_picture,
)

Array = np.ndarray[Any, Any]

LIVE_SIDE = 512
"""Longer side of what is shown while the light moves, pixels; files are written at the picture's own size."""
_KEPT = 8  # objects and backgrounds of the last visitors
_GREY = 236  # of a page without a background


@dataclass(frozen=True)
class Look:
    """How the shadow is laid on the background."""

    background: str | None = None
    """A file, or a colour; None: light grey."""
    intensity: float = 0.7
    colour: str = "#000000"


@dataclass(frozen=True, eq=False)
class Subject:
    """An object that was dropped: encoded once, shown under any number of lights."""

    prepared: PreparedObject
    """At its own size."""
    shown: ObjectPicture
    """The same, at most LIVE_SIDE wide and high."""


class Studio:
    """A model with the objects that it was last given. Several threads may ask; torch computes for one at a time."""

    def __init__(self, generator: ShadowGenerator) -> None:
        self._generator = generator
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._grounds: OrderedDict[tuple[str, int, int], Background] = OrderedDict()

    def subject(self, object_path: str, mask_path: str | None) -> Subject:
        """The object of these files; their content decides whether it is one of those that are kept.

        Raises:
            UserError: naming the file.
        """
        name = "/".join(_digest(path) for path in (object_path, mask_path) if path is not None)
        if name not in self._subjects:
            picture = read_object_picture(object_path, mask_path)
            _keep(self._subjects, name, Subject(self._generator.prepare(picture), _smaller(picture)))
        self._subjects.move_to_end(name)
        return self._subjects[name]

    def live(self, subject: Subject, light: Light, look: Look, steps: int, seed: int) -> tuple[Array, Array]:
        """Shadow map (H, W) and composite (H, W, 3), both uint8, at most LIVE_SIDE wide and high.

        Raises:
            UserError: a value is out of range, or the background cannot be read.
        """
        shadow = self._shadow(subject, subject.shown.size, light, steps, seed)
        return map_levels(shadow), self._laid(subject.shown, shadow, look)

    def files(
        self, subject: Subject, light: Light, look: Look, steps: int, seed: int, folder: Path
    ) -> tuple[Path, Path]:
        """The same at the picture's own size, as `shadow.png` and `composite.png` in a new folder below `folder`.

        Raises:
            UserError: as `live`.
        """
        picture = subject.prepared.picture
        shadow = self._shadow(subject, picture.size, light, steps, seed)
        place = Path(tempfile.mkdtemp(dir=folder))
        written = place / "shadow.png", place / "composite.png"
        Image.fromarray(map_levels(shadow)).save(written[0])
        Image.fromarray(self._laid(picture, shadow, look)).save(written[1])
        return written

    def _shadow(self, subject: Subject, size: tuple[int, int], light: Light, steps: int, seed: int) -> Array:
        square = self._generator.square(subject.prepared, *light, steps, seed)
        return unfit_square(square, *size)[0].numpy()

    def _laid(self, picture: ObjectPicture, shadow: Array, look: Look) -> Array:
        ground = self._ground(look.background, *picture.size)
        return composite(picture, shadow, ground, look.intensity, parse_colour(look.colour, "colour of the shadow"))

    def _ground(self, given: str | None, height: int, width: int) -> Background:
        if given is None:
            return Background(np.full((height, width, 3), _GREY, np.uint8), None)
        key = given, height, width
        if key not in self._grounds:
            ground = read_background(given, height, width, "cover")
            _keep(self._grounds, key, Background(ground.colour, None))
        return self._grounds[key]


def _smaller(picture: ObjectPicture) -> ObjectPicture:
    longer = max(picture.size)
    if longer <= LIVE_SIDE:
        return picture
    height, width = (max(round(side * LIVE_SIDE / longer), 1) for side in picture.size)
    matte = torch.nn.functional.interpolate(picture.matte[None], (height, width), mode="bilinear", antialias=True)[0]
    mode = "RGBA" if picture.image.has_transparency_data else "RGB"
    return ObjectPicture(picture.name, picture.image.convert(mode).resize((width, height)), matte)


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def _digest(path: str) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); drop it again") from error
