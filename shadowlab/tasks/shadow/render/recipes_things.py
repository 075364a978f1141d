"""Recipes for plants, figures, vessels, letters and machines. Each is rng -> parts, z up."""

import math

import numpy as np

from shadowlab.tasks.shadow.render import outlines
from shadowlab.tasks.shadow.render.recipe_tools import Recipe, Rng, random_color, rod, standing
from shadowlab.tasks.shadow.render.shapes import Part, box, cylinder, extrude, lathe, sphere, superquadric, sweep, torus


def tree(rng: Rng) -> list[Part]:
    """A conifer or a broad-leaved tree."""
    trunk = cylinder(0.1, 0.6, top_radius=0.07).painted((0.16, 0.08, 0.04))
    green = (rng.uniform(0.02, 0.2), rng.uniform(0.15, 0.4), rng.uniform(0.02, 0.12))
    if rng.uniform() < 0.5:
        layers = int(rng.integers(2, 5))
        crown = [cylinder(0.6 - 0.12 * k, 0.6, 0.0).moved((0, 0, 0.35 + 0.34 * k)) for k in range(layers)]
    else:
        crown = [
            sphere(rng.uniform(0.25, 0.45)).moved((*rng.uniform(-0.3, 0.3, 2), 0.75 + rng.uniform(0, 0.45)))
            for _ in range(rng.integers(3, 7))
        ]
    return [trunk] + [part.painted(green) for part in crown]


def mug(rng: Rng) -> list[Part]:
    """A mug or pot with a handle."""
    height, radius = rng.uniform(0.7, 1.2), rng.uniform(0.35, 0.5)
    foot, rim = radius * rng.uniform(0.75, 1), radius * rng.uniform(0.8, 1.1)
    wall = np.array([(foot, 0), (radius, height * 0.3), (rim, height)])
    body = lathe(outlines.walled(wall, 0.05, 0.06))
    angle = np.linspace(-1.9, 1.9, 32)
    bow = np.c_[radius * 0.98 + 0.28 * np.cos(angle), 0 * angle, height * 0.5 + 0.3 * height * np.sin(angle)]
    color = random_color(rng)
    return [body.painted(color), sweep(bow, 0.05).painted(color if rng.uniform() < 0.6 else random_color(rng))]


def molecule(rng: Rng) -> list[Part]:
    """Balls joined by rods."""
    points = [np.zeros(3)]
    parts = []
    rods = random_color(rng)
    for _ in range(rng.integers(3, 7)):
        direction = rng.normal(size=3)
        start = points[rng.integers(len(points))]
        points.append(start + direction / np.linalg.norm(direction) * rng.uniform(0.6, 0.9))
        parts.append(rod(start, points[-1], 0.06).painted(rods))
    return parts + [sphere(rng.uniform(0.14, 0.28)).moved(p).painted(random_color(rng)) for p in points]


def lamp(rng: Rng) -> list[Part]:
    """A lamp, a mushroom or a parasol: a foot, a stem and something wide on top."""
    height, stem = rng.uniform(0.9, 1.6), rng.uniform(0.03, 0.15)
    foot = cylinder(rng.uniform(0.25, 0.45), 0.07)
    wide, tall = rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.5)
    if rng.uniform() < 0.5:
        top = lathe([(wide, 0), (wide * 0.5, tall), (wide * 0.47, tall), (wide * 0.97, 0)], closed=True)
    else:
        angle = np.linspace(0, math.pi / 2, 20)
        dome = np.c_[wide * np.cos(angle), tall * np.sin(angle)]
        dome[-1, 0] = 0
        top = lathe([(0.0, 0.0), *dome])
    lifted = top.moved((0, 0, height - 0.02))
    pole = cylinder(stem, height + (tall if top.vertices[:, 0].min() > 0 else 0))
    return [part.painted(random_color(rng)) for part in (foot, pole, lifted)]


def figure(rng: Rng) -> list[Part]:
    """A jointed figure with raised or hanging arms."""
    skin, shirt, trousers = (random_color(rng) for _ in range(3))
    hip, shoulder, wide = rng.uniform(0.5, 0.8), rng.uniform(1.2, 1.5), rng.uniform(0.2, 0.32)
    parts = [
        superquadric((wide, 0.16, (shoulder - hip) / 2 + 0.05), 0.4, 0.6)
        .moved((0, 0, (shoulder + hip) / 2))
        .painted(shirt),
        sphere(rng.uniform(0.16, 0.28)).moved((0, 0, shoulder + 0.25)).painted(skin),
    ]
    for side in (-1, 1):
        stride = rng.uniform(-0.25, 0.25)
        lift = rng.uniform(-0.5, 0.6)
        parts.append(rod((side * wide * 0.5, 0, hip + 0.05), (side * wide * 0.7, stride, 0), 0.09).painted(trousers))
        hand = (side * (wide + 0.42), rng.uniform(-0.2, 0.2), shoulder - 0.1 + lift)
        parts.append(rod((side * wide * 0.85, 0, shoulder - 0.1), hand, 0.06).painted(shirt))
        parts.append(sphere(0.08).moved(hand).painted(skin))
    return parts


def wheel(rng: Rng) -> list[Part]:
    """A spoked wheel standing on its rim, sometimes a pair on an axle."""
    spokes, rim = int(rng.integers(4, 10)), rng.uniform(0.06, 0.14)
    parts = [torus(1.0, rim), cylinder(0.16, 0.24).moved((0, 0, -0.12))]
    for k in range(spokes):
        angle = 2 * math.pi * k / spokes
        parts.append(rod((0, 0, 0), (math.cos(angle), math.sin(angle), 0), 0.045))
    colors = [random_color(rng)] + [random_color(rng)] * (len(parts) - 1)
    upright = [standing(part).painted(color) for part, color in zip(parts, colors, strict=True)]
    if rng.uniform() < 0.5:
        return upright
    gap = rng.uniform(0.7, 1.3)
    axle = rod((0, -gap / 2 - 0.2, 0), (0, gap / 2 + 0.2, 0), 0.07).painted(random_color(rng))
    return [part.moved((0, side * gap / 2, 0)) for side in (-1, 1) for part in upright] + [axle]


def letter(rng: Rng) -> list[Part]:
    """A capital letter of straight strokes, standing."""
    glyphs = (
        ((0, 0, 1, 4), (1, 4, 2, 0), (0.4, 1.5, 1.6, 1.5)),  # A
        ((0, 0, 0, 4), (0, 4, 2, 4), (0, 2.1, 1.5, 2.1), (0, 0, 2, 0)),  # E
        ((0, 0, 0, 4), (0, 4, 2, 4), (0, 2.1, 1.5, 2.1)),  # F
        ((0, 0, 0, 4), (2, 0, 2, 4), (0, 2, 2, 2)),  # H
        ((0, 0, 0, 4), (0, 1.8, 2, 4), (0.6, 2.4, 2, 0)),  # K
        ((0, 0, 0, 4), (0, 0, 2, 0)),  # L
        ((0, 0, 0, 4), (0, 4, 1.2, 1.5), (1.2, 1.5, 2.4, 4), (2.4, 0, 2.4, 4)),  # M
        ((0, 0, 0, 4), (0, 4, 2, 0), (2, 0, 2, 4)),  # N
        ((0, 4, 2.2, 4), (1.1, 0, 1.1, 4)),  # T
        ((0, 4, 1, 0), (1, 0, 2, 4)),  # V
        ((0, 0, 2, 4), (0, 4, 2, 0)),  # X
        ((0, 4, 1, 2), (2, 4, 1, 2), (1, 2, 1, 0)),  # Y
        ((0, 4, 2, 4), (2, 4, 0, 0), (0, 0, 2, 0)),  # Z
    )
    color, depth, bar = random_color(rng), rng.uniform(0.3, 0.9), rng.uniform(0.4, 0.6)
    parts = []
    for x0, y0, x1, y1 in glyphs[rng.integers(len(glyphs))]:
        length, angle = math.hypot(x1 - x0, y1 - y0), math.degrees(math.atan2(x1 - x0, y1 - y0))
        stroke = box((bar, depth, length + bar)).moved((0, 0, -bar / 2)).turned("y", angle)
        parts.append(stroke.moved((x0, 0, y0)).painted(color))
    return parts


def potted_plant(rng: Rng) -> list[Part]:
    """A pot with arching blades."""
    pot = lathe(outlines.walled(np.array([(0.25, 0), (0.38, 0.5)]), 0.05, 0.4)).painted(random_color(rng))
    green = (rng.uniform(0.03, 0.15), rng.uniform(0.2, 0.45), rng.uniform(0.03, 0.1))
    blades = []
    for k in range(rng.integers(5, 10)):
        reach, rise, t = rng.uniform(0.3, 0.8), rng.uniform(0.7, 1.2), np.linspace(0, 1, 24)
        path = np.c_[reach * t**1.5, 0 * t, 0.4 + rise * np.sin(2.2 * t)]
        blades.append(sweep(path, 0.04, sides=8).scaled((1, 1.6, 1)).turned("z", 137.5 * k).painted(green))
    return [pot, *blades]


def rocket(rng: Rng) -> list[Part]:
    """A rocket with fins, or an aeroplane lying on its belly."""
    z = np.linspace(0, 1, 24)
    radius, fins = rng.uniform(0.18, 0.3), int(rng.integers(3, 6))
    profile = np.c_[radius * np.sqrt(np.clip(1 - z**3, 0, 1)) * (0.75 + 0.25 * np.sin(math.pi * z)), 0.15 + 1.5 * z]
    body = lathe([(0, 0.15), *profile]).painted(random_color(rng))
    wing = [(radius * 0.6, 0.35), (radius + 0.3, 0.0), (radius + 0.32, 0.25), (radius * 0.6, 0.9)]
    color = random_color(rng)
    blades = [
        standing(extrude(wing, 0.05)).moved((0, 0.025, 0)).turned("z", 360 * k / fins).painted(color)
        for k in range(fins)
    ]
    return [body, *blades]


THING_RECIPES: tuple[Recipe, ...] = (
    tree,
    mug,
    molecule,
    lamp,
    figure,
    wheel,
    letter,
    potted_plant,
    rocket,
)
