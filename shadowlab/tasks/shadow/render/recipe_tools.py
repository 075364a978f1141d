"""What the recipes for procedural objects share: colours, poses and small solids."""

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from shadowlab.tasks.shadow.render import outlines
from shadowlab.tasks.shadow.render.shapes import (
    Part,
    box,
    cylinder,
    extrude,
    lathe,
    rotation_between,
    sphere,
    superquadric,
    torus,
)

Rng = np.random.Generator
Recipe = Callable[[Rng], list[Part]]


def random_color(rng: Rng) -> tuple[float, float, float]:
    """Linear reflectance of a random hue, from muted to vivid, never near black or white."""
    red, green, blue = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.1, 0.85), rng.uniform(0.45, 0.95))
    return red**2.2, green**2.2, blue**2.2


def tumbled(part: Part, rng: Rng) -> Part:
    """Turned to a random orientation."""
    return part.turned("x", rng.uniform(0, 360)).turned("y", rng.uniform(0, 360))


def standing(part: Part) -> Part:
    """An extrusion that lies flat put up on edge, its outline's y axis pointing up."""
    return part.turned("x", 90)


def posed(part: Part, rng: Rng) -> Part:
    """An extrusion lying flat, standing on edge, or leaning back."""
    return part.turned("x", rng.choice([0.0, 90.0, rng.uniform(20, 75)]))


def random_solid(rng: Rng, size: float = 1.0) -> Part:
    """A primitive of about `size`, resting on z = 0."""
    kind = rng.integers(8)
    a, b, c = rng.uniform(0.5, 1.0, 3) * size
    if kind == 0:
        return box((a, b, c))
    if kind == 1:
        return box((a, b, c), taper=rng.uniform(0, 0.7))
    if kind == 2:
        return cylinder(a / 2, c)
    if kind == 3:
        return cylinder(a / 2, c, top_radius=rng.uniform(0, 0.8) * a / 2)
    if kind == 4:
        return superquadric((a / 2, b / 2, c / 2), rng.uniform(0.2, 1.2), rng.uniform(0.2, 1.2)).moved((0, 0, c / 2))
    if kind == 5:
        return sphere(a / 2).moved((0, 0, a / 2))
    if kind == 6:
        return extrude(outlines.regular(int(rng.integers(3, 9)), a / 2), c)
    return torus(a / 2.8, a / 8).moved((0, 0, a / 8))


def cylinder_shell(outer: float, inner: float, height: float) -> Part:
    """A piece of pipe."""
    return lathe([(inner, 0), (outer, 0), (outer, height), (inner, height)], closed=True)


def rod(start: ArrayLike, end: ArrayLike, radius: float) -> Part:
    """A round bar from one point to another."""
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    bar = cylinder(radius, float(np.linalg.norm(b - a)), segments=20)
    return Part(bar.vertices @ rotation_between(np.array([0.0, 0.0, 1.0]), b - a).T + a, bar.faces)
