"""Which convention a data set's lights follow: every one that is known is tried on the same shadows.

A convention is a function of the lights as the files have them, or of the pictures, and one line that says how to
convert. Each predicts the shadows (`geometry.py`); the one whose predictions look most like the files' explains them
best. It is named only where it does so much better than the documented one.

Legend: n samples, G cells of a window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowlab.tasks.shadow.geometry import SIDE, Array, Bodies, Floats, Windows, expected, likeness
from shadowlab.tasks.shadow.light import PHI_RANGE, THETA_RANGE

ELEVATIONS = (20.0, 32.0, 46.0)
"""Of the camera, degrees; the likeness falls slowly next to the right one."""
_BETTER = 0.06  # mean likeness: healthy sets of 12 samples and more lie below half of it, faulty ones above twice
_SURE = 4.0  # standard errors
_PREFER = 0.6  # share of samples that a convention explains better, of those that tell
_TOLD = 0.03  # likeness
_ROUGH = 48  # samples on which all conventions are tried; those that come nearest are tried on all
_NEAREST = 3
_SIMPLER = 0.01  # of likeness, that each further change must add
_HIGHEST_THETA = 60.0  # a convention that puts lights lower is none


@dataclass(frozen=True, eq=False)
class Scenes:
    """Samples that are judged together."""

    ids: Sequence[str]
    lights: Array
    """(n, 3) theta, phi, size as the files have them, out of range, too."""
    masks: Floats
    """(n, S, S) in [0, 1]."""
    shadows: Floats
    """(n, S, S) in [0, 1]."""

    def take(self, rows: NDArray[np.int64]) -> "Scenes":
        return Scenes([self.ids[row] for row in rows], self.lights[rows], self.masks[rows], self.shadows[rows])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Convention:
    """One way to read the files."""

    said: str
    """What the data seem to follow."""
    fix: str
    """The conversion, in one line."""
    lights: Callable[[Array], Array] = lambda lights: lights
    """(n, 3) as the files have them -> as documented."""
    pictures: Callable[[Scenes], Scenes] = lambda scenes: scenes
    """The pictures as they should be."""


@dataclass(frozen=True, eq=False)
class Explained:
    """How well a convention explains the shadows."""

    convention: Convention
    elevation: float
    """Of the camera, that it assumes."""
    likeness: Array
    """(n,) in [0, 1]."""

    def beats(self, other: "Explained", better: float = _BETTER) -> bool:
        """Clearly: by its mean, by chance, and in most samples."""
        gain = self.likeness - other.likeness
        error = float(gain.std()) / math.sqrt(len(gain)) + 1e-9
        told = np.abs(gain) > _TOLD  # a light near the axis of a mirror says nothing
        prefer = float((gain[told] > 0).mean()) if told.any() else 0.0
        return bool(gain.mean() >= better and gain.mean() >= _SURE * error and prefer >= _PREFER)


class View:
    """Scenes cut out once, from a camera of one elevation."""

    def __init__(self, scenes: Scenes, elevation: float) -> None:
        self.scenes, self.elevation = scenes, elevation
        self.bodies = Bodies.of(scenes.masks)
        self.windows = Windows.around(self.bodies)
        self.shadows = self.windows.cut(scenes.shadows)

    def likeness(self, lights: Array) -> Array:
        """(n,) of the shadows under these lights (n, 3)."""
        return likeness(expected(self.bodies, self.windows, lights, self.elevation), self.shadows, self.windows)


DOCUMENTED = Convention("the documented convention", "")


def explained(scenes: Scenes, convention: Convention, elevation: float) -> Explained:
    changed = convention.pictures(scenes)
    return Explained(convention, elevation, View(changed, elevation).likeness(convention.lights(changed.lights)))


def documented(scenes: Scenes) -> Explained:
    """How well the documented convention does, from the elevation that suits it best."""
    return max((explained(scenes, DOCUMENTED, one) for one in ELEVATIONS), key=_merit)


def best_convention(scenes: Scenes, conventions: Sequence[Convention]) -> Explained:
    """Tried on some from one elevation; those that come nearest on all from each."""
    rough = scenes.take(_spread(len(scenes), _ROUGH))
    middle = ELEVATIONS[len(ELEVATIONS) // 2]
    tried = sorted((explained(rough, one, middle) for one in conventions), key=_merit, reverse=True)
    near = [explained(scenes, one.convention, elevation) for one in tried[:_NEAREST] for elevation in ELEVATIONS]
    return max(near, key=_merit)


def _merit(found: Explained) -> float:
    """Of two that explain as much, the simpler one is more likely."""
    return float(found.likeness.mean()) - _SIMPLER * found.convention.fix.count(";")


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


# Of lights


def light_conventions(raw: Array) -> list[Convention]:
    """Every one that makes directions of these lights, without the documented one. raw: (n, 3)."""
    found = []
    for exchange_said, exchange_fix, exchange in _EXCHANGES:
        exchanged = exchange(raw)
        for theta_said, theta_fix, theta in _THETAS:
            new_theta = theta(exchanged[:, 0])
            if np.mean((new_theta >= -0.01) & (new_theta <= _HIGHEST_THETA)) < 0.98:
                continue
            for unit_said, unit_fix, factor, most in _UNITS:
                if np.abs(exchanged[:, 1]).max() > most:
                    continue
                for turn_said, turn_fix, sign, turn in _TURNS:
                    said = [one for one in (exchange_said, theta_said, unit_said, turn_said) if one]
                    fix = [one for one in (exchange_fix, theta_fix, unit_fix, turn_fix) if one]
                    if said:
                        lights = _composed(exchange, theta, factor, sign, turn)
                        found.append(Convention(" and ".join(said), "; ".join(fix), lights))
    return found


def _composed(
    exchange: Callable[[Array], Array], theta: Callable[[Array], Array], factor: float, sign: int, turn: float
) -> Callable[[Array], Array]:
    def lights(raw: Array) -> Array:
        first = exchange(raw)
        return np.stack([theta(first[:, 0]), sign * first[:, 1] * factor + turn, first[:, 2]], axis=1)

    return lights


_ratio = PHI_RANGE[1] / THETA_RANGE[1]
_EXCHANGES: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("", "", lambda raw: raw),
    ("theta and phi are exchanged", "theta, phi = phi, theta", lambda raw: raw[:, [1, 0, 2]]),
    (
        "theta and phi are exchanged, each brought to the other's range",
        f"theta, phi = phi / {_ratio:g}, theta * {_ratio:g}",
        lambda raw: np.stack([raw[:, 1] / _ratio, raw[:, 0] * _ratio, raw[:, 2]], axis=1),
    ),
)
_THETAS: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("", "", lambda theta: theta),
    ("theta is measured from the horizon", "theta = 90 - theta", lambda theta: 90.0 - theta),
    ("theta runs backwards", "theta = 45 - theta", lambda theta: 45.0 - theta),
    ("theta is in radians", "theta = theta * 180 / pi", lambda theta: _of_unit(theta, math.pi / 4, 180 / math.pi)),
    (
        "theta is in radians from the horizon",
        "theta = 90 - theta * 180 / pi",
        lambda theta: _of_unit(math.pi / 2 - theta, math.pi / 2, 180 / math.pi),
    ),
    (
        "theta is a share of its range",
        "theta = theta * 45",
        lambda theta: _of_unit(theta, 1.0, 45.0, least=math.pi / 4 * 1.02),  # less may be radians
    ),
)


def _of_unit(theta: Array, most: float, factor: float, least: float = 0.0) -> Array:
    """NaN, which no convention has, where the highest value is none that the unit has."""
    return theta * factor if least < theta.max() <= most * 1.01 else np.full_like(theta, np.nan)


_UNITS = (
    ("", "", 1.0, math.inf),
    ("phi is in radians", "phi = phi * 180 / pi", 180 / math.pi, 2 * math.pi + 0.01),
    ("phi is a share of a turn", "phi = phi * 360", 360.0, 1.001),
)
_TURNS = (
    ("", "", 1, 0.0),
    ("phi is off by half a turn (it says where the shadow falls)", "phi = (phi + 180) % 360", 1, 180.0),
    ("phi is off by a quarter turn", "phi = (phi + 90) % 360", 1, 90.0),
    ("phi is off by a quarter turn", "phi = (phi + 270) % 360", 1, 270.0),
    ("phi is mirrored (it grows clockwise)", "phi = (360 - phi) % 360", -1, 0.0),
    (
        "phi is mirrored left to right, or all pictures are mirrored left to right",
        "phi = (180 - phi) % 360",
        -1,
        180.0,
    ),
    ("phi is mirrored and off by a quarter turn (a compass's)", "phi = (90 - phi) % 360", -1, 90.0),
    ("phi is mirrored and off by a quarter turn", "phi = (270 - phi) % 360", -1, 270.0),
)


# Of pictures


def _of_shadows(change: Callable[[Floats], Floats]) -> Callable[[Scenes], Scenes]:
    return lambda scenes: Scenes(scenes.ids, scenes.lights, scenes.masks, np.ascontiguousarray(change(scenes.shadows)))


def _of_masks(change: Callable[[Floats], Floats]) -> Callable[[Scenes], Scenes]:
    return lambda scenes: Scenes(scenes.ids, scenes.lights, np.ascontiguousarray(change(scenes.masks)), scenes.shadows)


def _of_both(change: Callable[[Floats], Floats]) -> Callable[[Scenes], Scenes]:
    return lambda scenes: _of_shadows(change)(_of_masks(change)(scenes))


PICTURE_CONVENTIONS = (
    Convention(
        "the shadow maps are mirrored left to right",
        "save each shadow map mirrored: shadow[:, ::-1]",
        pictures=_of_shadows(lambda levels: levels[:, :, ::-1]),
    ),
    Convention(
        "the shadow maps are upside down",
        "save each shadow map as shadow[::-1]",
        pictures=_of_shadows(lambda levels: levels[:, ::-1]),
    ),
    Convention(
        "the shadow maps are turned by half a turn",
        "save each shadow map as shadow[::-1, ::-1]",
        pictures=_of_shadows(lambda levels: levels[:, ::-1, ::-1]),
    ),
    Convention(
        "the shadow maps are turned by a quarter turn",
        "save each shadow map as numpy.rot90(shadow)",
        pictures=_of_shadows(lambda levels: np.rot90(levels, 1, axes=(1, 2))),
    ),
    Convention(
        "the shadow maps are turned by a quarter turn",
        "save each shadow map as numpy.rot90(shadow, -1)",
        pictures=_of_shadows(lambda levels: np.rot90(levels, -1, axes=(1, 2))),
    ),
    Convention(
        "the shadow maps are transposed, rows for columns",
        "save each shadow map as shadow.T",
        pictures=_of_shadows(lambda levels: levels.transpose(0, 2, 1)),
    ),
    Convention(
        "all pictures are upside down",
        "save every object, mask and shadow as picture[::-1]",
        pictures=_of_both(lambda levels: levels[:, ::-1]),
    ),
    Convention(
        "all pictures are turned by half a turn",
        "save every object, mask and shadow as picture[::-1, ::-1]",
        pictures=_of_both(lambda levels: levels[:, ::-1, ::-1]),
    ),
)


def shifted_convention(scenes: Scenes, elevation: float) -> Convention | None:
    """That the shadow maps are moved by the way that makes them fit best; None where it is less than 2 % of a side.

    Found by the middles of the expected and of the true shadows, the median of all.
    """
    view = View(scenes, elevation)
    hoped = expected(view.bodies, view.windows, scenes.lights, elevation)
    found = view.shadows
    right = _middle(found, view.windows.columns[:, None, :], view.windows) - _middle(
        hoped, view.windows.columns[:, None, :], view.windows
    )
    down = _middle(found, view.windows.rows[:, :, None], view.windows) - _middle(
        hoped, view.windows.rows[:, :, None], view.windows
    )
    if not np.isfinite(right).any():
        return None
    x, y = round(float(np.nanmedian(right))), round(float(np.nanmedian(down)))
    if math.hypot(x, y) < 0.04 * SIDE:
        return None
    where = " and ".join(
        f"{abs(by) / SIDE:.0%} of their side {word}"
        for by, word in ((x, "to the right" if x > 0 else "to the left"), (y, "down" if y > 0 else "up"))
        if by
    )
    return Convention(
        f"the shadow maps are shifted by about {where}",
        "save them as large as, and cropped like, the objects",
        pictures=_of_shadows(lambda levels: _moved(levels, -x, -y)),
    )


def _middle(maps: Floats, place: Array, windows: Windows) -> Array:
    """(n,) of the shadows in pixels of the picture; NaN where there is none."""
    weights = np.where(windows.inside & (maps > 0.05), maps, 0.0)
    total = weights.sum(axis=(1, 2))
    return np.where(total > 0, (weights * place).sum(axis=(1, 2)) / np.where(total > 0, total, 1), np.nan)


def _moved(levels: Floats, right: int, down: int) -> Floats:
    moved = np.zeros_like(levels)
    height, width = levels.shape[1:]
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = levels[
        :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved
