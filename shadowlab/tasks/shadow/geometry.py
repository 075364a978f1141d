"""What a shadow should look like, roughly and fast, for any camera: the object as a stack of discs.

The silhouette is cut into slices; each is a horizontal disc over the object's foot, as wide as the silhouette is there.
Its shadow is a disc on the ground, moved away from the light by its height times tan theta, with an edge that is the
softer the higher the slice and the larger the light. The camera looks from afar (orthographic), so that the one number
it needs is its elevation; scale, distance and field of view drop out. Coarser than the inflated silhouette of
`baselines.py`, a thousand times as fast, and good enough to tell conventions apart.

Legend: n samples, S = 64 side of the pictures, K = 8 slices, G = 32 side of the windows. Lengths in pixels of S; angles
in degrees.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shadowlab.tasks.shadow.light import LIGHT_DISTANCE

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

SIDE = 64
_SLICES = 8
_WINDOW = 32
_REACH = 1.76  # half side of a window over the object's longer side: a shadow at 45 degrees lies inside
_STEEPEST = 80.0  # degrees: lights of another convention may lie anywhere


def small(picture: Tensor) -> Floats:
    """(1, H, W) in [0, 1] -> (S, S) float32: averages, with zeros around what is not square, as a letterbox."""
    _, height, width = picture.shape
    if height != width:
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        picture = F.pad(picture, (left, side - width - left, top, side - height - top))
    return F.adaptive_avg_pool2d(picture, SIDE)[0].numpy()


@dataclass(frozen=True, eq=False)
class Bodies:
    """Objects as stacks of discs."""

    slices: Array
    """(n, K) half widths; 0 where the silhouette has a gap."""
    middles: Array
    """(n, K) columns of their middles."""
    ups: Array
    """(n, K) rows above the lowest of the mask."""
    bottom: Array
    """(n,) row below the lowest of the mask."""
    height: Array
    """(n,) rows of the mask."""
    width: Array
    """(n,) columns of the mask."""
    middle: Array
    """(n,) column between its left and right end."""

    @classmethod
    def of(cls, masks: Floats) -> "Bodies":
        """masks: (n, S, S) in [0, 1], none of them empty."""
        solid = masks >= np.minimum(0.5, masks.max(axis=(1, 2), keepdims=True))
        rows, columns = solid.any(axis=2), solid.any(axis=1)
        top, bottom = rows.argmax(axis=1), SIDE - rows[:, ::-1].argmax(axis=1)
        left, right = columns.argmax(axis=1), SIDE - columns[:, ::-1].argmax(axis=1)
        height = (bottom - top).astype(np.float64)
        share = (np.arange(_SLICES) + 0.5) / _SLICES
        at = (bottom[:, None] - share * height[:, None]).clip(0, SIDE - 1).astype(int)
        lines = solid[np.arange(len(solid))[:, None], at]
        first, last = lines.argmax(axis=2), SIDE - lines[:, :, ::-1].argmax(axis=2)
        half = np.where(lines.any(axis=2), (last - first) / 2.0, 0.0)
        return cls(
            half,
            (first + last) / 2.0,
            share * height[:, None],
            bottom.astype(np.float64),
            height,
            (right - left).astype(np.float64),
            (left + right) / 2.0,
        )

    def __len__(self) -> int:
        return len(self.bottom)

    def take(self, rows: NDArray[np.int64]) -> "Bodies":
        return Bodies(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def foot(self, elevation: float) -> Array:
        """(n,) row of the middle of what it stands on: its front end is the lowest row, it is half as deep as wide."""
        return self.bottom - 0.25 * self.width * math.sin(math.radians(elevation))


@dataclass(frozen=True, eq=False)
class Windows:
    """The part of each picture in which an object's shadow can lie, G x G cells."""

    columns: Array
    """(n, G) of the cells' middles."""
    rows: Array
    """(n, G)"""
    inside: NDArray[np.bool_]
    """(n, G, G): whether the cell lies in the picture."""

    @classmethod
    def around(cls, bodies: Bodies) -> "Windows":
        half = _REACH * np.maximum(bodies.height, bodies.width)
        steps = (np.arange(_WINDOW) + 0.5) / _WINDOW * 2 - 1
        columns = bodies.middle[:, None] + steps * half[:, None]
        rows = (bodies.bottom - 0.15 * bodies.width)[:, None] + steps * half[:, None]
        inside = ((columns >= 0) & (columns < SIDE))[:, None, :] & ((rows >= 0) & (rows < SIDE))[:, :, None]
        return cls(columns, rows, inside)

    def take(self, rows: NDArray[np.int64]) -> "Windows":
        return Windows(self.columns[rows], self.rows[rows], self.inside[rows])

    def cut(self, pictures: Floats, right: float = 0.0, down: float = 0.0) -> Floats:
        """(n, S, S) -> (n, G, G), bilinear, 0 outside. right, down: look so many pixels farther."""
        x = torch.from_numpy((self.columns + right) / SIDE * 2 - 1).float()[:, None, :].expand(-1, _WINDOW, -1)
        y = torch.from_numpy((self.rows + down) / SIDE * 2 - 1).float()[:, :, None].expand(-1, -1, _WINDOW)
        pixels = torch.from_numpy(np.ascontiguousarray(pictures))[:, None]
        return F.grid_sample(pixels, torch.stack([x, y], dim=-1), align_corners=False)[:, 0].numpy()


def expected(bodies: Bodies, windows: Windows, lights: Array, elevation: float) -> Floats:
    """The shadows, (n, G, G) in [0, 1]. lights: (n, 3) theta, phi, size; out of range, too. elevation: degrees."""
    theta, phi = np.radians(lights[:, 0].clip(-_STEEPEST, _STEEPEST)), np.radians(lights[:, 1])
    sin, cos = math.sin(math.radians(elevation)), math.cos(math.radians(elevation))
    height = bodies.ups / cos
    fall = height * np.tan(theta)[:, None]
    x = bodies.middles - fall * np.cos(phi)[:, None]
    y = -fall * np.sin(phi)[:, None]
    edge = 0.75 + height * (np.abs(lights[:, 2]) / LIGHT_DISTANCE / 2)[:, None]  # half width of a penumbra
    ground_x = windows.columns[:, None, :].astype(np.float32)
    ground_y = ((bodies.foot(elevation)[:, None] - windows.rows) / sin)[:, :, None].astype(np.float32)
    shadows = np.zeros(windows.inside.shape, np.float32)
    for k in range(_SLICES):
        place = [one[:, k, None, None].astype(np.float32) for one in (x, y, bodies.slices, edge)]
        distance = np.sqrt((ground_x - place[0]) ** 2 + (ground_y - place[1]) ** 2)
        cover = np.clip(0.5 + (place[2] - distance) / (2 * place[3]), 0, 1)
        np.maximum(shadows, cover * (place[2] > 0), out=shadows)
    return shadows


def likeness(shadows: Floats, others: Floats, windows: Windows) -> Array:
    """Cosine of the angle between two maps (n, G, G) of what lies in the picture, (n,) in [0, 1]: strength drops out.
    0 where a map is empty."""
    a, b = shadows * windows.inside, others * windows.inside
    product, lengths = (a * b).sum(axis=(1, 2)), (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
    return np.where(lengths > 1e-12, product / np.sqrt(np.maximum(lengths, 1e-12)), 0.0).astype(np.float64)


def cosine(a: Floats, b: Floats) -> float:
    """Of the angle between two maps (H, W), in [0, 1]; 0 where one is empty."""
    length = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / length if length > 1e-9 else 0.0
