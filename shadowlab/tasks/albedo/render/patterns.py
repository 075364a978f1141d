"""Surfaces: procedural patterns of a few colours, photographs, and how they are laid on an object.

Everything is a pure function of its random generator. Pictures are (S, S, 3) uint8 sRGB.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shadowlab.tasks.shadow.render import PLAIN_GREY, Part, linear_from_srgb

Picture = NDArray[np.uint8]
Random = np.random.Generator
SIDE = 128
"""Pixels of a pattern; it is laid on about one object's width."""
_PLAIN = 0.45  # share of parts and grounds of one colour
_TILE = 2.2  # scene units that a pattern spans


def surface_colour(rng: Random) -> NDArray[np.float64]:
    """An sRGB colour (3,) in [0, 1] that paints and cloths have: neither black nor brighter than paper."""
    hue, saturation, value = rng.uniform(), rng.beta(1.6, 1.6), rng.uniform(0.28, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue, 0.9 * saturation, value))


def pattern(rng: Random) -> Picture:
    """One of `PATTERNS`, in two to four colours."""
    colours = np.stack([surface_colour(rng) for _ in range(rng.integers(2, 5))])
    kind = PATTERNS[int(rng.integers(len(PATTERNS)))]
    return np.round(colours[kind(rng) % len(colours)] * 255).astype(np.uint8)


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column of each pixel, in [0, 1)."""
    places = (np.arange(SIDE) + 0.5) / SIDE
    row, column = np.meshgrid(places, places, indexing="ij")
    return row, column


def _checker(rng: Random) -> NDArray[np.int64]:
    row, column = _grid()
    count = rng.integers(2, 4)
    return (row * count).astype(np.int64) + (column * count).astype(np.int64)


def _stripes(rng: Random) -> NDArray[np.int64]:
    row, column = _grid()
    along, across = rng.integers(0, 3, 2)
    return ((row * max(along, along == across == 0) + column * across) * 2).astype(np.int64)


def _dots(rng: Random) -> NDArray[np.int64]:
    row, column = _grid()
    count = rng.integers(2, 4)
    down, right = (row * count) % 1 - 0.5, (column * count) % 1 - 0.5
    inside = np.hypot(down, right) < rng.uniform(0.2, 0.42)
    return np.where(inside, 1, 0) * (1 + (row * count).astype(np.int64) % 2)


def _patches(rng: Random) -> NDArray[np.int64]:
    """Cells of random points, on a torus: the pattern repeats without a seam."""
    row, column = _grid()
    count = int(rng.integers(4, 9))
    points, kinds = rng.uniform(size=(count, 2)), rng.integers(0, 4, count)
    down, right = (np.abs(place[..., None] - points[:, i]) for i, place in enumerate((row, column)))
    nearest = np.hypot(np.minimum(down, 1 - down), np.minimum(right, 1 - right)).argmin(axis=-1)
    return np.asarray(kinds[nearest])


def _waves(rng: Random) -> NDArray[np.int64]:
    """Levels of a sum of waves that repeats: marble, clouds."""
    row, column = _grid()
    height = np.zeros((SIDE, SIDE))
    for _ in range(5):
        down, right = rng.integers(-2, 3, 2)
        height += np.cos(2 * np.pi * (down * row + right * column + rng.uniform())) * rng.uniform(0.3, 1)
    return np.asarray(np.digitize(height, np.quantile(height, (0.3, 0.55, 0.8))))


def _bricks(rng: Random) -> NDArray[np.int64]:
    row, column = _grid()
    rows = rng.integers(2, 5)
    line = (row * rows).astype(np.int64)
    along = (column * rows / 2 + 0.5 * (line % 2)) % 1
    joint = ((row * rows) % 1 < 0.16) | (along < 0.08)
    return np.where(joint, 0, 1 + (line + (column * rows / 2 + 0.5 * (line % 2)).astype(np.int64)) % 2)


PATTERNS: Sequence[Callable[[Random], NDArray[np.int64]]] = (_checker, _stripes, _dots, _patches, _waves, _bricks)
"""Which colour each pixel has, as whole numbers (S, S)."""


def dressed(parts: Sequence[Part], rng: Random, photograph: Picture | None, *, keeps: bool) -> list[Part]:
    """An object with a surface of its own on each part.

    Args:
        parts: as they stand in the scene.
        photograph: laid on the first part; None: procedural patterns alone.
        keeps: leave parts as they are that say something of their colour: those of a mesh file.
    """
    found = []
    for number, part in enumerate(parts):
        plain, turn = rng.uniform() < _PLAIN, rng.uniform(0, 2 * np.pi)
        own, colour = pattern(rng), surface_colour(rng)
        says = part.texture is not None or part.vertex_colors is not None or part.color != PLAIN_GREY
        if keeps and says:
            found.append(part)
        elif photograph is not None and number == 0:
            found.append(_laid(part, photograph, turn))
        elif plain:
            found.append(part.painted(linear_from_srgb(colour)))
        else:
            found.append(_laid(part, own, turn))
    return found


def _laid(part: Part, picture: Picture, turn: float) -> Part:
    """The picture as projected from one side, a little from above, so that no face lies along the rays."""
    x, y, z = part.vertices.T
    along = x * np.cos(turn) + y * np.sin(turn)
    up = z + 0.6 * (y * np.cos(turn) - x * np.sin(turn))
    bare = replace(part, color=(1.0, 1.0, 1.0), vertex_colors=None)
    return bare.textured(np.stack([along, up], axis=1) / _TILE, picture)


def ground_picture(rng: Random, photograph: Picture | None) -> Picture:
    """Of the ground: the photograph, a pattern, or one colour."""
    plain, own, colour = rng.uniform() < _PLAIN, pattern(rng), surface_colour(rng)
    if photograph is not None:
        return photograph
    return np.broadcast_to(np.round(colour * 255).astype(np.uint8), (8, 8, 3)).copy() if plain else own
