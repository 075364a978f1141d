"""Does a shadow obey its light? Measures that need no true shadow, on the ground as the camera of a `View` sees it.

- direction: the shadow's centroid, seen from the object's foot, lies away from the light; the foot is guessed from the
  mask, so that scattered or lopsided objects have an error of their own, which the truth has, too;
- turning: from the centroid under phi + 180 to that under phi it goes away from the light, wherever the foot is;
- length: how far the shadow reaches grows with theta;
- penumbra: the 10-90 % width of its edge grows with the size of the light;
- turn: the shadow is another one when the light goes round by half a turn.

What cannot be measured, because there is no shadow, is None with the reason; never 0. H W pixels; angles in degrees.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shadowlab.tasks.shadow.baselines import standing_point
from shadowlab.tasks.shadow.light import Light, light_position
from shadowlab.tasks.shadow.view import Array, View

Draw = Callable[[Light], ArrayLike]
"""(theta, phi, size) -> shadow map (H, W) in [0, 1]."""

_Point = tuple[float, float]

FAINTEST = 0.1
"""A map that nowhere reaches it shows no shadow."""
HAZE = 0.05
"""Values below are taken for background, not for shadow."""
_PHIS = tuple(float(phi) for phi in range(0, 360, 45))
_THETAS = (5.0, 15.0, 25.0, 35.0, 45.0)
_SIZES = (2.0, 3.5, 5.0, 6.5, 8.0)
_SLANTED, _DIAGONALS = 35.0, (45.0, 225.0)  # along a diagonal the longest shadow stays in the picture
_DIRECTIONS: tuple[Light, ...] = tuple((_SLANTED, phi, 2.0) for phi in _PHIS)
_LENGTHS: tuple[tuple[Light, ...], ...] = tuple(tuple((theta, phi, 2.0) for theta in _THETAS) for phi in _DIAGONALS)
_PENUMBRAE: tuple[tuple[Light, ...], ...] = tuple(tuple((30.0, phi, size) for size in _SIZES) for phi in _DIAGONALS)

CONTROL_LIGHTS: tuple[Light, ...] = tuple(
    dict.fromkeys([*_DIRECTIONS, *(light for row in (*_LENGTHS, *_PENUMBRAE) for light in row)])
)
"""Every light that is asked for, each once."""


@dataclass(frozen=True)
class Control:
    """What was measured for one object."""

    direction_error: float | None
    """Degrees in [0, 180] between the shadow's direction and the light's, mean over the turn of phi; 90 by chance."""
    turning_error: float | None
    """The same of the way from the shadow's centroid under phi + 180 to that under phi; needs no foot."""
    length_monotone: float | None
    """Share of steps of theta in which the shadow becomes longer, in [0, 1]."""
    length_rank: float | None
    """Spearman's rank correlation of theta and the shadow's length, in [-1, 1]."""
    penumbra_monotone: float | None
    """Share of steps of size in which the penumbra becomes wider, in [0, 1]."""
    penumbra_rank: float | None
    """Spearman's rank correlation of size and the penumbra's width, in [-1, 1]."""
    change_on_turn: float | None
    """1 - soft IoU of the shadows of phi and phi + 180, mean over the pairs, in [0, 1]; 0 where phi does nothing."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Name of each field that is None -> why."""


def measure_control(draw: Draw, mask: ArrayLike, view: View) -> Control:
    """Ask `draw` for the shadow of the object under each of `CONTROL_LIGHTS`, once, and measure.

    Args:
        draw: all maps have the mask's size.
        mask: (H, W), of which 0.5 and more is the object.
        view: the camera.

    Raises:
        ValueError: a map has another shape than the mask, or a value that is not finite.
    """
    solid = np.asarray(mask) >= 0.5
    ground = _Ground(solid.shape, view)
    maps = {light: _checked(draw(light), light, solid.shape) for light in CONTROL_LIGHTS}
    if not solid.any():
        return _nothing("the mask is empty")
    foot = standing_point(solid, view)
    reasons: dict[str, str] = {}

    def mean(name: str, values: Sequence[float | None]) -> float | None:
        """Of those that could be measured, where these are more than half."""
        known = [value for value in values if value is not None]
        if 2 * len(known) > len(values):
            return float(np.mean(known))
        reasons[name] = f"no shadow, or none that moves, in {len(values) - len(known)} of {len(values)} cases"
        return None

    centroids = {light: ground.centroid(maps[light]) for light in _DIRECTIONS}
    errors = [_direction_error(foot, centroids[light], _away(light, foot)) for light in _DIRECTIONS]
    pairs = [(light, _turned(light)) for light in _DIRECTIONS if light[1] < 180]
    turns = [_direction_error(centroids[other], centroids[light], _away(light, (0.0, 0.0))) for light, other in pairs]
    lengths = [[_length(ground, maps[light], light, foot) for light in row] for row in _LENGTHS]
    widths = [[_penumbra(ground, maps[light]) for light in row] for row in _PENUMBRAE]
    return Control(
        direction_error=mean("direction_error", errors),
        turning_error=mean("turning_error", turns),
        length_monotone=mean("length_monotone", [_increasing(row) for row in lengths]),
        length_rank=mean("length_rank", [_rank(row) for row in lengths]),
        penumbra_monotone=mean("penumbra_monotone", [_increasing(row) for row in widths]),
        penumbra_rank=mean("penumbra_rank", [_rank(row) for row in widths]),
        change_on_turn=mean("change_on_turn", [_change(maps[light], maps[other]) for light, other in pairs]),
        not_measured=reasons,
    )


def _nothing(reason: str) -> Control:
    names = [one.name for one in fields(Control) if one.name != "not_measured"]
    return Control(None, None, None, None, None, None, None, not_measured=dict.fromkeys(names, reason))


def _checked(shadow: ArrayLike, light: Light, shape: tuple[int, ...]) -> Array:
    values = np.asarray(shadow, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"the map for light {light} is {values.shape}, the mask {shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"the map for light {light} has values that are not finite")
    return values


def _turned(light: Light) -> Light:
    return light[0], (light[1] + 180.0) % 360.0, light[2]


class _Ground:
    """x and y of each pixel, the area of the ground that it shows, and how far its neighbours lie apart."""

    def __init__(self, shape: tuple[int, ...], view: View) -> None:
        height, width = shape
        column, row = np.arange(width)[None] + 0.5, np.arange(height)[:, None] + 0.5
        self.x, self.y = view.ground(column, row, height, width)
        _, ends = view.ground([[width / 2]], np.arange(height + 1)[:, None], height, width)
        self.deep = np.abs(np.diff(ends, axis=0))  # (H, 1): scene units a row covers along y
        self.wide = np.abs(self.x[:, 1:] - self.x[:, :-1])[:, :1] if width > 1 else np.full((height, 1), np.nan)
        self.seen = np.isfinite(self.deep) & np.isfinite(self.wide) & (self.y < 4 * view.distance)
        self.area = np.where(self.seen, self.deep * self.wide, 0.0)
        # d x / d row at one column: the rows fan out towards the camera
        self.slant = np.gradient(self.x, axis=0) if height > 1 else np.zeros_like(self.x)

    def weights(self, shadow: Array) -> Array | None:
        """How much shadow lies in each pixel's piece of ground; None where there is no shadow."""
        if shadow.max() < FAINTEST:
            return None
        weights = np.where(shadow >= HAZE, shadow, 0.0) * self.area
        return weights if weights.sum() > 0 else None

    def centroid(self, shadow: Array) -> _Point | None:
        """Of the shadow on the ground; None where there is none."""
        weights = self.weights(shadow)
        if weights is None:
            return None
        at = weights > 0
        total = weights[at].sum()
        return float((weights[at] * self.x[at]).sum() / total), float((weights[at] * self.y[at]).sum() / total)

    def steepness(self, shadow: Array) -> Array:
        """Length of the map's gradient on the ground, per scene unit; NaN where no ground is seen."""
        down, right = np.gradient(shadow)
        along_x = right / self.wide
        along_y = (down - along_x * self.slant) / self.deep
        return np.hypot(along_x, along_y)


def _away(light: Light, foot: _Point) -> _Point:
    """Unit vector on the ground from the light past the foot."""
    x, y, _ = light_position(*light[:2])
    away = foot[0] - x, foot[1] - y
    length = math.hypot(*away)
    return (away[0] / length, away[1] / length) if length > 0 else (0.0, 0.0)


def _direction_error(start: _Point | None, end: _Point | None, along: _Point) -> float | None:
    """Angle between the way from start to end and the unit vector `along`; None where there is no way."""
    if start is None or end is None:
        return None
    x, y = end[0] - start[0], end[1] - start[1]
    length = math.hypot(x, y)
    if length < 1e-9:
        return None
    return math.degrees(math.acos(min(max((x * along[0] + y * along[1]) / length, -1.0), 1.0)))


def _length(ground: _Ground, shadow: Array, light: Light, foot: _Point) -> float | None:
    """How far from the foot, away from the light, nine tenths of the shadow have ended, scene units."""
    weights = ground.weights(shadow)
    if weights is None:
        return None
    at = weights > 0
    along = _away(light, foot)
    far = (ground.x[at] - foot[0]) * along[0] + (ground.y[at] - foot[1]) * along[1]
    order = np.argsort(far)
    mass = weights[at][order].cumsum()
    return float(np.interp(0.9 * mass[-1], mass, far[order]))


def _penumbra(ground: _Ground, shadow: Array) -> float | None:
    """Mean distance between the lines of 10 and of 90 % of the shadow's darkest, scene units.

    Area between them over their mean length, which is the integral of the steepness there (the coarea formula).
    """
    if ground.weights(shadow) is None:
        return None
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(shadow, max(shadow.shape) / 256, mode="nearest")  # noise has edges, too
    relative = smooth / smooth.max()
    band = (relative > 0.1) & (relative < 0.9) & ground.seen
    edges = float((ground.steepness(relative)[band] * ground.area[band]).sum())
    return 0.8 * float(ground.area[band].sum()) / edges if edges > 0 else None


def _increasing(values: Sequence[float | None]) -> float | None:
    """Share of neighbours that grow; None where a value is."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return float(np.mean(np.diff(known) > 0))


def _rank(values: Sequence[float | None]) -> float | None:
    """Spearman's correlation with the order of the values; 0 where all are equal, None where one is None."""
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        return None
    ranks = np.array([((known < value).sum() + (known <= value).sum() - 1) / 2 for value in known])
    order = np.arange(len(known)) - (len(known) - 1) / 2
    ranks -= ranks.mean()
    spread = math.sqrt(float(ranks @ ranks) * float(order @ order))
    return float(ranks @ order) / spread if spread > 0 else 0.0


def _change(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if max(a.max(), b.max()) < FAINTEST:
        return None
    a, b = np.where(a >= HAZE, a, 0.0), np.where(b >= HAZE, b, 0.0)
    return 1.0 - float(np.minimum(a, b).sum() / np.maximum(a, b).sum())
