"""Whether the lights of a data set belong to its shadows: constant, shuffled, of the next sample, or size alone.

Legend: n samples.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowlab.data import Fault
from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.conventions import Scenes, View
from shadowlab.tasks.shadow.geometry import Array, cosine
from shadowlab.tasks.shadow.light import RANGES
from shadowlab.tasks.shadow.numbers import Numbers
from shadowlab.tasks.shadow.view import default_view

_REGRET = 0.16  # mean likeness that another light would add: 0.06 in rendered sets, 0.27 in shuffled ones
_AS_GOOD = 0.01
_FOLLOWS = 0.1  # likeness that own lights add to those of other samples: 0.2 in rendered sets
_GRID = [(theta, phi) for theta in (8.0, 22.0, 38.0) for phi in (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)]
_STEADY = 5.0  # standard errors of a size that matters
_FEW, _MANY = 30, 100  # samples that a size is judged by: for a warning, for an error
_LARGE = 0.15  # of the side: of smaller objects the penumbra is lost
LEAST_OF_A_COLUMN = 20
"""Samples that a constant theta is judged by."""
_THETAS = (2.0, 12.0, 22.0, 32.0, 42.0)
_FAR_THETA = 12.0  # degrees
_MANY_OFF = 0.2  # share of samples; of rendered sets, 0.05


@dataclass(frozen=True)
class Neighbours:
    """Lights of other samples that may have been exchanged. (n, 3) each."""

    before: Array
    after: Array


def constant_columns(lights: Array) -> dict[str, float]:
    """Name -> its value, of those of theta, phi and size that are the same for all."""
    return {name: float(lights[0, i]) for i, name in enumerate(RANGES) if np.ptp(lights[:, i]) < 1e-6}


def follows(view: View, lights: Array, seed: int = 0) -> tuple[float, float]:
    """Mean likeness under the samples' own lights, and under those of others."""
    order = np.random.default_rng(seed).permutation(len(lights))
    return float(view.likeness(lights).mean()), float(view.likeness(lights[order]).mean())


def label_fault(view: View, lights: Array, object_ids: Sequence[str], neighbours: Neighbours) -> Fault | None:
    """What is wrong with lights that no convention makes right; None where they explain the shadows.

    lights: (n, 3).
    """
    own, others = follows(view, lights)
    if own - others > _FOLLOWS:
        return None
    sizes = lights[:, 2]
    best = np.max(
        [view.likeness(np.stack([np.full_like(sizes, t), np.full_like(sizes, p), sizes], 1)) for t, p in _GRID], 0
    )
    regret = float(best.mean()) - own
    if regret < _REGRET:
        return None
    within = _within(view, lights, object_ids) or 0.0
    for neighbour, said in (
        (neighbours.before, "the sample before, in the order of ids: give each light to the sample after it"),
        (neighbours.after, "the sample after, in the order of ids: give each light to the sample before it"),
    ):
        if float(view.likeness(neighbour).mean()) > max(own + regret / 2, within - _AS_GOOD):
            return Fault(f"lights: the shadows are explained by the light of {said}", True)
    if constant := constant_columns(lights):
        listed = " and ".join(f"{name} is {value:g} for all" for name, value in constant.items())
        return Fault(f"lights: {listed} samples, but their shadows fall differently: the column was lost", True)
    if within > own + regret / 2:
        return Fault(
            "lights: they are shuffled within objects (each object's shadows are explained by another order of its "
            "lights); pair them again by the names that they were rendered under",
            True,
        )
    return Fault(
        f"lights: they are shuffled, or belong to other pictures: no known convention explains the shadows (likeness "
        f"{own:.2f} with each sample's own light, {others:.2f} with another's, {own + regret:.2f} with the best); pair "
        "them again",
        True,
    )


def _within(view: View, lights: Array, object_ids: Sequence[str]) -> float | None:
    """Mean likeness under the best order of each object's lights; None where objects have one sample each.

    Of pairs alone half of all orders are right by chance, so that objects of three and more samples count.
    """
    from scipy.optimize import linear_sum_assignment

    groups: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(object_ids):
        groups[name].append(row)
    large = [rows for rows in groups.values() if len(rows) > 2]
    if len(large) < 4 and sum(map(len, large)) < 12:
        return None
    most = max(map(len, large))
    table = np.zeros((most, len(lights)))
    for turn in range(most):
        other = np.arange(len(lights))
        for rows in large:
            other[rows] = [rows[turn % len(rows)]] * len(rows)
        table[turn] = view.likeness(lights[other])
    found = []
    for rows in large:
        gains = table[: len(rows), rows]
        light, sample = linear_sum_assignment(-gains)
        found += gains[light, sample].tolist()
    return float(np.mean(found))


def size_faults(numbers: Numbers, lights: Array) -> list[Fault]:
    """Shadows soften with size: a regression of their softness on size, theta and the object's form. lights: (n, 3)."""
    is_large = np.maximum(numbers["height"], numbers["width"]) > _LARGE
    seen = is_large & (numbers["softness"] > 0) & (numbers["shadow_border"] < 0.1) & (np.abs(lights[:, 0]) < 60)
    if seen.sum() < _FEW or np.ptp(lights[seen, 2]) < 0.5:
        return []
    size = lights[seen, 2]
    if size.min() <= 0:
        return []
    tall, wide = numbers["height"][seen].astype(float), numbers["width"][seen].astype(float)
    soft = np.log(numbers["softness"][seen] / np.maximum(tall, wide))
    form = np.stack([np.tan(np.radians(lights[seen, 0])), np.log(tall / wide), np.ones(len(size))], 1)
    sure = {said: _sureness(soft, np.log(values), form) for said, values in _sizes(size).items()}
    own = sure.pop("size")
    said = max(sure, key=lambda one: sure[one])
    if own < 0 and sure[said] > _STEADY:
        return [
            Fault(f"size: shadows get sharper as it grows; the data seem to follow another one: size = {said}", True)
        ]
    if own < 2 and sure[said] < _STEADY:
        is_error = len(size) >= _MANY and float(size.max() / size.min()) > 2
        return [Fault("size: it does not explain how soft the shadows are: shuffled, or of another light", is_error)]
    return []


def _sizes(size: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    low, high = RANGES["size"]
    return {"size": size, f"{low + high:g} - size": np.maximum(low + high - size, 0.1)}


def _sureness(soft: Array, value: Array, form: Array) -> float:
    """t of the value's coefficient."""
    columns = np.concatenate([value[:, None], form], axis=1)
    factors, *_ = np.linalg.lstsq(columns, soft, rcond=None)
    rest = soft - columns @ factors
    spread = np.linalg.pinv(columns.T @ columns) * rest.var()
    return float(factors[0] / np.sqrt(spread[0, 0] + 1e-12))


def theta_fault(scenes: Scenes) -> Fault | None:
    """theta is the same for all, but the oracle finds that the shadows are of several."""
    constant = constant_columns(scenes.lights)
    if "theta" not in constant or len(scenes) < LEAST_OF_A_COLUMN:
        return None
    view, off = default_view(), list[bool]()
    for row in np.linspace(0, len(scenes) - 1, LEAST_OF_A_COLUMN).round().astype(int):
        mask, shadow, (_, phi, size) = scenes.masks[row], scenes.shadows[row], scenes.lights[row].tolist()
        if not all(
            low <= value <= high for value, (low, high) in zip((phi, size), list(RANGES.values())[1:], strict=True)
        ):
            return None
        solid = mask >= min(0.5, float(mask.max()))
        fits = [cosine(inflated_silhouette(solid, theta, phi, size, view), shadow) for theta in _THETAS]
        off.append(abs(_THETAS[int(np.argmax(fits))] - constant["theta"]) > _FAR_THETA)
    if np.mean(off) < _MANY_OFF:
        return None
    value = constant["theta"]
    return Fault(
        f"lights: theta is {value:g} for all samples, but their shadows are of several lengths: it was lost", True
    )
