"""Recipes for single solids: primitives, turned and extruded shapes, bent tubes. Each is rng -> parts, z up."""

import math

import numpy as np

from shadowlab.tasks.shadow.render import outlines
from shadowlab.tasks.shadow.render.recipe_tools import (
    Recipe,
    Rng,
    cylinder_shell,
    posed,
    random_color,
    random_solid,
    tumbled,
)
from shadowlab.tasks.shadow.render.shapes import (
    Array,
    Part,
    box,
    extrude,
    extrude_ring,
    lathe,
    rotation,
    superquadric,
    sweep,
    torus,
)


def primitive(rng: Rng) -> list[Part]:
    part = random_solid(rng)
    return [(tumbled(part, rng) if rng.uniform() < 0.4 else part).painted(random_color(rng))]


def superellipsoid(rng: Rng) -> list[Part]:
    part = superquadric(rng.uniform(0.4, 1.0, 3), rng.uniform(0.15, 2.5), rng.uniform(0.15, 2.5))
    return [(tumbled(part, rng) if rng.uniform() < 0.5 else part).painted(random_color(rng))]


def vase(rng: Rng) -> list[Part]:
    """A vessel turned on the lathe, open at the top."""
    profile = outlines.smooth_profile(rng, 0.15, 0.5) * (1, rng.uniform(0.8, 1.6))
    return [lathe(outlines.walled(profile, 0.04, 0.05)).painted(random_color(rng))]


def bowl(rng: Rng) -> list[Part]:
    height, foot = rng.uniform(0.25, 0.7), rng.uniform(0.15, 0.4)
    z = np.linspace(0, 1, 20)
    profile = np.c_[foot + (1 - foot) * z ** rng.uniform(0.3, 0.8), z * height]
    return [lathe(outlines.walled(profile, 0.05, 0.06)).painted(random_color(rng))]


def turned_piece(rng: Rng) -> list[Part]:
    """A chess piece or baluster: rings, coves and a knob on a wide foot."""
    z, profile = 0.0, [(0.0, 0.0), (0.42, 0.0), (0.42, 0.08)]
    for _ in range(rng.integers(2, 5)):
        z = profile[-1][1]
        length, wide, narrow = rng.uniform(0.15, 0.5), rng.uniform(0.18, 0.4), rng.uniform(0.08, 0.2)
        steps = np.linspace(0, 1, 12)
        radii = narrow + (wide - narrow) * (np.cos(2 * math.pi * steps) + 1) / 2
        profile += [(float(r), z + 0.02 + length * float(s)) for r, s in zip(radii, steps, strict=True)]
    z = profile[-1][1]
    angle = np.linspace(-math.pi / 2 + 0.5, math.pi / 2, 16)
    knob = rng.uniform(0.15, 0.28)
    profile += [(knob * math.cos(a), z + knob * (math.sin(a) + math.cos(0.5))) for a in angle[:-1]]
    profile.append((0.0, z + knob * (1 + math.cos(0.5))))
    return [lathe(profile).painted(random_color(rng))]


def flat_shape(rng: Rng) -> list[Part]:
    """A star, heart, moon, arrow, cross, polygon or blob cut from a board."""
    shapes: list[Array] = [
        outlines.star(int(rng.integers(4, 9)), rng.uniform(0.35, 0.6)),
        outlines.heart(),
        outlines.crescent(rng.uniform(0.3, 0.6)),
        outlines.arrow(rng.uniform(0.3, 0.6)),
        outlines.cross(rng.uniform(0.3, 0.7)),
        outlines.blob(rng),
        outlines.regular(int(rng.integers(3, 8))),
    ]
    part = extrude(shapes[rng.integers(len(shapes))], rng.uniform(0.12, 0.6))
    return [posed(part, rng).painted(random_color(rng))]


def pierced_shape(rng: Rng) -> list[Part]:
    """A gear, star or frame with a hole right through."""
    shapes = [
        outlines.gear(int(rng.integers(8, 16)), rng.uniform(0.15, 0.3)),
        outlines.star(int(rng.integers(5, 9)), rng.uniform(0.6, 0.75)),
        outlines.regular(int(rng.choice([3, 4, 6, 48]))),
    ]
    outer = shapes[rng.integers(len(shapes))]
    if len(outer) > 12:  # a round hole, its points at the same angles as those of the outline
        inner = outer / np.linalg.norm(outer, axis=1, keepdims=True) * rng.uniform(0.25, 0.5)
    else:
        inner = outer * rng.uniform(0.45, 0.8)
    return [posed(extrude_ring(outer, inner, rng.uniform(0.15, 0.5)), rng).painted(random_color(rng))]


def twisted_column(rng: Rng) -> list[Part]:
    shapes = [outlines.star(5, 0.6), outlines.regular(4), outlines.regular(3), outlines.cross(0.5)]
    part = extrude(
        shapes[rng.integers(len(shapes))], rng.uniform(2, 4), rng.uniform(60, 240), taper=rng.uniform(0.3, 1.0)
    )
    return [part.painted(random_color(rng))]


def bent_tube(rng: Rng) -> list[Part]:
    """A spring, a knot, or a wire sculpture."""
    kind = rng.integers(3)
    if kind == 0:
        turns, height = rng.uniform(2, 5), rng.uniform(1, 2.2)
        t = np.linspace(0, 1, int(40 * turns))
        radius = 0.7 * (1 - rng.uniform(0, 0.6) * t)
        angle = 2 * math.pi * turns * t
        return [
            sweep(np.c_[radius * np.cos(angle), radius * np.sin(angle), height * t], 0.07).painted(random_color(rng))
        ]
    t = np.linspace(0, 2 * math.pi, 160, endpoint=False)
    if kind == 1:
        p, q = ((2, 3), (3, 2), (2, 5))[rng.integers(3)]
        ring = 1 + 0.45 * np.cos(q * t)
        path = np.c_[ring * np.cos(p * t), ring * np.sin(p * t), 0.45 * np.sin(q * t)]
    else:
        path = sum(
            np.outer(np.cos(k * t), rng.normal(size=3)) + np.outer(np.sin(k * t), rng.normal(size=3)) / k**1.5
            for k in range(1, 4)
        )
        path = path / np.abs(path).max()
    part = sweep(path, rng.uniform(0.07, 0.14), closed=True)
    return [part.turned("x", rng.choice([0.0, 90.0])).painted(random_color(rng))]


def cut_ring(rng: Rng) -> list[Part]:
    """A torus or a flat ring, lying or standing on its edge."""
    tube = rng.uniform(0.08, 0.3)
    part = torus(1.0, tube) if rng.uniform() < 0.6 else cylinder_shell(1.0, 1 - tube, rng.uniform(0.2, 1.2))
    return [part.turned("x", rng.choice([0.0, 90.0])).painted(random_color(rng))]


def slab_on_edge(rng: Rng) -> list[Part]:
    """A thin board: a book, a sign or a screen, upright or leaning."""
    part = box((rng.uniform(0.6, 1.4), rng.uniform(0.04, 0.2), rng.uniform(0.6, 1.4)))
    lean = rotation("x", rng.uniform(-25, 25))
    return [Part(part.vertices @ lean.T, part.faces, random_color(rng))]


SIMPLE_RECIPES: tuple[Recipe, ...] = (
    primitive,
    superellipsoid,
    vase,
    bowl,
    turned_piece,
    flat_shape,
    pierced_shape,
    twisted_column,
    bent_tube,
    cut_ring,
    slab_on_edge,
)
