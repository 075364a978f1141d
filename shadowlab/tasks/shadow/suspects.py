"""Single samples whose light explains their shadow worse than another sample's does.

All samples are looked at by their shadows' centroids; those that lie far from where their light puts them are compared
with the inflated silhouette (`baselines.py`) under their own and under other samples' lights.

Legend: n samples, S = 64 side of the reduced pictures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.geometry import Array, Floats, cosine
from shadowlab.tasks.shadow.numbers import Numbers
from shadowlab.tasks.shadow.view import default_view

MOST = 200
"""Samples that are compared with the oracle."""
_FAR = 3.0  # robust standard deviations of a centroid
_FEW = 8
_LEAST = 0.15  # of the object's size: nearer ones show nothing
_OTHERS = 5  # lights of other samples that are tried
_WORSE = 0.25  # likeness that another light must add
_SHOWN = 8
_STEEP = 60.0


@dataclass(frozen=True)
class Suspect:
    """A sample and the light that explains it better."""

    row: int
    own: float
    """Likeness of the oracle under its own light, in [0, 1]."""
    other: int
    """The sample whose light explains it best."""
    best: float
    shown: Floats
    """(S, 4 S): mask, shadow, oracle under its own light, and under the other's."""


def far_from_their_lights(numbers: Numbers, lights: Array) -> tuple[NDArray[np.int64], Array, Array]:
    """Rows, farthest first, at most `MOST`; and each sample's displacement (n, 2), and what a light's (n, 2) explains.

    The displacement of a shadow's centroid from the foot is fitted as a constant plus a multiple of tan theta away from
    the light, in units of the object's size, without what lies far off.
    """
    scale = np.maximum(np.maximum(numbers["height"], numbers["width"]), 0.02).astype(np.float64)
    found = (
        np.stack([numbers["shadow_x"] - numbers["middle"], numbers["shadow_y"] - numbers["bottom"]], axis=1).astype(
            np.float64
        )
        / scale[:, None]
    )
    share = numbers["height"] / scale
    theta, phi = np.radians(lights[:, 0].clip(0, _STEEP)), np.radians(lights[:, 1])
    away = np.tan(theta)[:, None] * np.stack([-np.cos(phi), np.sin(phi)], axis=1)
    seen = (numbers["shadow_most"] > 0.1) & (np.abs(found).max(axis=1) < 10)
    explained = np.zeros_like(found)
    if seen.sum() < _FEW:
        return np.zeros(0, np.int64), found, explained
    for column in range(2):
        terms = np.stack([np.ones(len(share)), share, share * away[:, column]], axis=1)
        kept = seen.copy()
        for _ in range(3):
            factors, *_ = np.linalg.lstsq(terms[kept], found[kept, column], rcond=None)
            rest = found[:, column] - terms @ factors
            kept = seen & (np.abs(rest) <= _FAR * _spread(rest[kept]))
        explained[:, column] = terms @ factors
    rest = found - explained
    limit = np.maximum([_FAR * _spread(rest[seen, column]) for column in range(2)], _LEAST)
    far = np.where(seen, (np.abs(rest) / limit).max(axis=1), 0.0)
    rows = np.argsort(-far, kind="stable")
    return rows[far[rows] > 1][:MOST], found, explained


def _spread(values: Array) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) + 1e-6


def suspects(
    numbers: Numbers,
    lights: Array,
    elevation: float,
    read: Callable[[int], tuple[Floats, Floats] | None],
) -> list[Suspect]:
    """By row.

    Args:
        lights: (n, 3), as documented.
        elevation: of the camera.
        read: row -> mask and shadow (S, S), or None.
    """
    rows, found, explained = far_from_their_lights(numbers, lights)
    view = default_view()
    if abs(view.elevation - elevation) > 10:
        view = replace(view, elevation=elevation)
    result = []
    for row in rows.tolist():
        pictures = read(row)
        if pictures is None:
            continue
        mask, shadow = pictures
        solid = mask >= min(0.5, float(mask.max()))
        own = inflated_silhouette(solid, *_clipped(lights[row]), view)
        likeness = cosine(own, shadow)
        if likeness > 1 - _WORSE:
            continue
        best, other, drawn = likeness, row, own
        for candidate in _others(row, found, explained):
            hoped = inflated_silhouette(solid, *_clipped(lights[candidate]), view)
            if (near := cosine(hoped, shadow)) > best:
                best, other, drawn = near, candidate, hoped
        if best > likeness + _WORSE:
            shown = np.concatenate([mask, shadow, own, drawn], axis=1)
            result.append(Suspect(row, likeness, other, best, shown))
    return sorted(result, key=lambda one: one.row)


def _others(row: int, found: Array, explained: Array) -> list[int]:
    """Samples whose lights put the centroid nearest to where it is."""
    distance = np.hypot(*(explained - found[row]).T)
    distance[row] = math.inf
    count = min(_OTHERS, len(distance) - 1)
    return np.argpartition(distance, count - 1)[:count].tolist() if count else []


def _clipped(light: Array) -> tuple[float, float, float]:
    theta, phi, size = light.tolist()
    return min(max(theta, 0.0), 45.0), phi % 360.0, min(max(size, 2.0), 8.0)


def drawn(found: list[Suspect]) -> NDArray[np.uint8] | None:
    """(H, W, 3): a row each, from left to right the mask, the shadow, and the oracle's under its own and the other
    light; the worst first."""
    if not found:
        return None
    worst = sorted(found, key=lambda one: one.own - one.best)[:_SHOWN]
    grey = (np.concatenate([one.shown for one in worst]).clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
