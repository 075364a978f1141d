"""Polygon outlines for extrusion and profiles for the lathe. Outlines are counter-clockwise (N, 2), about unit size."""

import math

import numpy as np

from shadowlab.tasks.shadow.render.shapes import Array


def regular(sides: int, radius: float = 1.0) -> Array:
    angle = np.arange(sides) * (2 * math.pi / sides) + math.pi / 2
    return radius * np.c_[np.cos(angle), np.sin(angle)]


def star(points: int, inner: float) -> Array:
    """A star with `points` tips at radius 1 and its notches at radius `inner`."""
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return regular(2 * points) * radius[:, None]


def gear(teeth: int, depth: float) -> Array:
    """A gear wheel of radius 1 with flat teeth of `depth`; eight points a tooth."""
    step = 2 * math.pi / teeth
    offsets = np.array([0.02, 0.14, 0.3, 0.48, 0.54, 0.68, 0.82, 0.96])
    angle = ((np.arange(teeth)[:, None] + offsets) * step).ravel()
    radius = np.tile([1, 1, 1, 1, 1 - depth, 1 - depth, 1 - depth, 1 - depth], teeth)
    return np.c_[radius * np.cos(angle), radius * np.sin(angle)]


def blob(rng: np.random.Generator, wobble: float = 0.35) -> Array:
    """A smooth random closed curve about the origin."""
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    radius = np.ones(72)
    for k in range(2, 6):
        radius += wobble / k * rng.uniform(-1, 1) * np.cos(k * angle + rng.uniform(0, 2 * math.pi))
    return np.c_[radius * np.cos(angle), radius * np.sin(angle)]


def heart() -> Array:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False) + 0.01
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.c_[x, y][::-1] / 16


def crescent(bite: float) -> Array:
    """A moon: a disc of radius 1 less a disc of the same radius moved right by 1 - `bite`; 0 < bite < 1."""
    offset = 1 - bite
    tip = math.acos(offset / 2)
    outer = np.linspace(tip, 2 * math.pi - tip, 40)
    inner = np.linspace(math.pi + tip, math.pi - tip, 40)[1:-1]
    return np.vstack([np.c_[np.cos(outer), np.sin(outer)], np.c_[offset + np.cos(inner), np.sin(inner)]])


def arrow(shaft: float) -> Array:
    """An arrow pointing along +y, its shaft `shaft` wide."""
    w = shaft / 2
    return np.array([(-w, -1), (w, -1), (w, 0.2), (0.7, 0.2), (0, 1), (-0.7, 0.2), (-w, 0.2)])


def cross(arm: float) -> Array:
    """A plus sign whose arms are `arm` wide."""
    w = arm / 2
    quarter = np.array([(w, w), (w, 1), (-w, 1)])
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.vstack([quarter @ turn.T for turn in turns])


def half_ring(outer: float, inner: float) -> Array:
    """The upper half of a ring: an arch standing on y = 0."""
    angle = np.linspace(0, math.pi, 33)
    unit = np.c_[np.cos(angle), np.sin(angle)]
    return np.vstack([outer * unit, inner * unit[::-1]])


def smooth_profile(rng: np.random.Generator, low: float, high: float, knots: int = 5) -> Array:
    """A random smooth (radius, z) curve from z = 0 to 1 with radii in [`low`, `high`]; (41, 2)."""
    radii = rng.uniform(low, high, knots)
    z = np.linspace(0, 1, 41)
    position = z * (knots - 1)
    k = np.minimum(position.astype(int), knots - 2)
    ease = position - k
    ease = ease * ease * (3 - 2 * ease)  # between two knots, so it never leaves their range
    return np.c_[radii[k] * (1 - ease) + radii[k + 1] * ease, z]


def walled(profile: Array, thickness: float, floor: float) -> Array:
    """A vessel's profile: up the outside of `profile`, over the rim and down the inside to a `floor` of that height."""
    inside = np.c_[np.maximum(profile[:, 0] - thickness, 0.02), profile[:, 1]][::-1]
    inside = inside[inside[:, 1] > floor]
    return np.vstack([[(0, profile[0, 1])], profile, inside, [(inside[-1, 0], floor), (0, floor)]])
