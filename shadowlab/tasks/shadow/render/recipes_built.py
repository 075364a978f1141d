"""Recipes for buildings and furniture, put together from several solids. Each is rng -> parts, z up."""

import numpy as np

from shadowlab.tasks.shadow.render import outlines
from shadowlab.tasks.shadow.render.recipe_tools import (
    Recipe,
    Rng,
    cylinder_shell,
    random_color,
    random_solid,
    rod,
    standing,
)
from shadowlab.tasks.shadow.render.shapes import Part, box, cylinder, extrude, sphere


def stack(rng: Rng) -> list[Part]:
    """Two to five solids on top of one another."""
    parts, top, size = [], 0.0, 1.0
    for _ in range(rng.integers(2, 6)):
        solid = random_solid(rng, size).turned("z", rng.uniform(0, 360))
        parts.append(solid.moved((*rng.uniform(-0.06, 0.06, 2), top - 0.01)).painted(random_color(rng)))
        top = parts[-1].vertices[:, 2].max()
        size *= rng.uniform(0.65, 1.05)
    return parts


def cluster(rng: Rng) -> list[Part]:
    """Solids that stand side by side and run into one another."""
    return [
        random_solid(rng, rng.uniform(0.5, 1.2)).moved((*rng.uniform(-0.6, 0.6, 2), 0)).painted(random_color(rng))
        for _ in range(rng.integers(3, 7))
    ]


def arch(rng: Rng) -> list[Part]:
    """A round arch on two pillars."""
    inner, width, depth, height = 0.6, rng.uniform(0.2, 0.4), rng.uniform(0.3, 0.7), rng.uniform(0.3, 1.1)
    ring = standing(extrude(outlines.half_ring(inner + width, inner), depth)).moved((0, depth / 2, height))
    color = random_color(rng)
    pillars = [box((width, depth, height)).moved((side * (inner + width / 2), 0, 0)) for side in (-1, 1)]
    base = [box((width * 1.3, depth * 1.2, 0.12)).moved((side * (inner + width / 2), 0, 0)) for side in (-1, 1)]
    return [p.painted(color) for p in (ring, *pillars)] + [p.painted(random_color(rng)) for p in base]


def bridge(rng: Rng) -> list[Part]:
    """A deck on two to four piers, with or without railings."""
    count, span, height = int(rng.integers(2, 5)), rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.9)
    length = span * (count - 1) + 0.4
    deck = box((length, 0.5, 0.1)).moved((0, 0, height))
    piers = [box((0.14, 0.4, height), taper=0.8).moved((span * (k - (count - 1) / 2), 0, 0)) for k in range(count)]
    parts = [deck.painted(random_color(rng))] + [pier.painted(random_color(rng)) for pier in piers]
    if rng.uniform() < 0.6:
        color = random_color(rng)
        for side in (-0.22, 0.22):
            ends = (-length / 2, side, height + 0.32), (length / 2, side, height + 0.32)
            places = np.linspace(-1, 1, 7) * length / 2.1
            posts = [rod((x, side, height), (x, side, height + 0.32), 0.02) for x in places]
            parts += [part.painted(color) for part in (rod(*ends, 0.025), *posts)]
    return parts


def table(rng: Rng) -> list[Part]:
    """A table or stool, round or square, on thin legs."""
    radius, height, leg = rng.uniform(0.5, 1.0), rng.uniform(0.7, 1.3), rng.uniform(0.03, 0.08)
    is_round = rng.uniform() < 0.5
    top = cylinder(radius, 0.08) if is_round else box((2 * radius, rng.uniform(1, 2) * radius, 0.08))
    reach = top.vertices.max(axis=0)[:2] * (0.6 if is_round else 0.88)
    legs = [
        rod((sx * reach[0] * 1.1, sy * reach[1] * 1.1, 0), (sx * reach[0], sy * reach[1], height), leg)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    color = random_color(rng)
    return [top.moved((0, 0, height)).painted(random_color(rng))] + [part.painted(color) for part in legs]


def chair(rng: Rng) -> list[Part]:
    """A chair with a slatted or a solid back."""
    seat, back, leg = rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.2), 0.09
    posts = [box((leg, leg, seat)).moved((x, y, 0)) for x in (-0.4, 0.4) for y in (-0.4, 0.4)]
    uprights = [box((leg, leg, back)).moved((x, 0.4, seat)) for x in (-0.4, 0.4)]
    if rng.uniform() < 0.6:
        slats = [box((0.8, 0.05, 0.1)).moved((0, 0.4, seat + back * f)) for f in (0.35, 0.6, 0.88)]
    else:
        slats = [box((0.8, 0.05, back * 0.6)).moved((0, 0.4, seat + back * 0.4))]
    wood, cushion = random_color(rng), random_color(rng)
    return [p.painted(wood) for p in (*posts, *uprights, *slats)] + [
        box((0.92, 0.92, 0.1)).moved((0, 0, seat)).painted(cushion)
    ]


def lattice(rng: Rng) -> list[Part]:
    """A fence, a ladder or a garden trellis: thin bars with gaps."""
    columns, rows = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    width, height, bar = 0.32 * columns, rng.uniform(0.9, 1.8), rng.uniform(0.05, 0.1)
    upright = [box((bar, bar, height)).moved((x, 0, 0)) for x in np.linspace(-width / 2, width / 2, columns)]
    level = np.linspace(0.15, 0.92, rows) * height
    across = [box((width + bar, bar * 0.6, bar)).moved((0, 0, z)) for z in level]
    feet = [box((bar * 2, 0.5, bar)).moved((x, 0, 0)) for x in (-width / 2, width / 2)]
    color, second = random_color(rng), random_color(rng)
    return [p.painted(color) for p in (*upright, *feet)] + [p.painted(second) for p in across]


def wire_cube(rng: Rng) -> list[Part]:
    """The edges of a box, with a ball inside."""
    size, bar = rng.uniform(0.7, 1.2, 3), rng.uniform(0.05, 0.1)
    parts = []
    for axis in range(3):
        length = np.full(3, bar)
        length[axis] = size[axis]
        for s in (-0.5, 0.5):
            for t in (-0.5, 0.5):
                offset = np.zeros(3)
                offset[(axis + 1) % 3], offset[(axis + 2) % 3] = s, t
                middle = offset * (size - bar) + (0, 0, size[2] / 2 - length[2] / 2)
                parts.append(box(length).moved(middle))
    color = random_color(rng)
    ball = sphere(size.min() * rng.uniform(0.15, 0.35)).moved((0, 0, size[2] / 2))
    return [p.painted(color) for p in parts] + [ball.painted(random_color(rng))]


def stairs(rng: Rng) -> list[Part]:
    """A straight flight or a spiral round a post."""
    steps, color = int(rng.integers(4, 9)), random_color(rng)
    if rng.uniform() < 0.5:
        return [box((0.25, 0.8, 0.2 * (k + 1))).moved((0.25 * k, 0, 0)).painted(color) for k in range(steps)]
    post = cylinder(0.08, 0.2 * (steps + 3)).painted(random_color(rng))
    treads = [
        box((0.7, 0.26, 0.05)).moved((0.4, 0, 0)).turned("z", 38 * k).moved((0, 0, 0.2 * k + 0.05))
        for k in range(steps + 3)
    ]
    return [post] + [tread.painted(color) for tread in treads]


def castle(rng: Rng) -> list[Part]:
    """A tower with battlements, round or square, perhaps with a roof."""
    radius, height, count = rng.uniform(0.35, 0.6), rng.uniform(0.8, 1.5), int(rng.integers(6, 11))
    body = cylinder(radius, height, top_radius=radius * rng.uniform(0.8, 1))
    crown = cylinder_shell(radius * 1.12, radius * 0.85, 0.14).moved((0, 0, height - 0.02))
    stone = random_color(rng)
    teeth = [
        box((0.16, 0.18, 0.16)).moved((radius, 0, height + 0.1)).turned("z", 360 * k / count) for k in range(count)
    ]
    parts = [part.painted(stone) for part in (body, crown, *teeth)]
    if rng.uniform() < 0.5:
        parts.append(cylinder(radius * 0.8, 0.6, 0.0).moved((0, 0, height)).painted(random_color(rng)))
    return parts


def house(rng: Rng) -> list[Part]:
    """A gabled house with a chimney."""
    width, depth = rng.uniform(0.7, 1.2), rng.uniform(0.8, 1.6)
    height, roof = rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.7)
    gable = [(-width / 2, 0), (width / 2, 0), (width / 2, height), (0, height + roof * 0.92), (-width / 2, height)]
    walls = standing(extrude(gable, depth)).moved((0, depth / 2, 0))
    half, thick, ridge = width / 2 + 0.12, 0.1, height + roof
    eaves = height - roof * 0.12 / (width / 2)
    outline = [(-half, eaves), (0, ridge), (half, eaves)]
    outline += [(x, z + thick) for x, z in reversed(outline)]
    tiles = standing(extrude(outline, depth + 0.2)).moved((0, depth / 2 + 0.1, 0))
    chimney = box((0.16, 0.16, roof + 0.2)).moved((width * 0.25, depth * 0.2, height))
    return [part.painted(random_color(rng)) for part in (walls, tiles, chimney)]


BUILT_RECIPES: tuple[Recipe, ...] = (
    stack,
    cluster,
    arch,
    bridge,
    table,
    chair,
    lattice,
    wire_cube,
    stairs,
    castle,
    house,
)
