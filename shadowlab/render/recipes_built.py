"""Recipes for things put together from several solids: furniture, buildings, figures. Each is rng -> parts, z up."""

import math

import numpy as np

from shadowlab.render import outlines
from shadowlab.render.recipes_simple import Recipe, Rng, cylinder_shell, random_color, random_solid, standing
from shadowlab.render.shapes import Part, box, cylinder, extrude, lathe, rotation_between, sphere, superquadric, sweep
from shadowlab.render.shapes import torus


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Part:
    """A round bar from one point to another."""
    a, b = np.array(start), np.array(end)
    bar = cylinder(radius, float(np.linalg.norm(b - a)), segments=20)
    return Part(bar.vertices @ rotation_between(np.array([0.0, 0.0, 1.0]), b - a).T + a, bar.faces)


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
            posts = [
                rod((x, side, height), (x, side, height + 0.32), 0.02) for x in np.linspace(-1, 1, 7) * length / 2.1
            ]
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
    wall = np.array(
        [(radius * rng.uniform(0.75, 1), 0), (radius, height * 0.3), (radius * rng.uniform(0.8, 1.1), height)]
    )
    body = lathe(outlines.walled(wall, 0.05, 0.06))
    angle = np.linspace(-1.9, 1.9, 32)
    bow = np.c_[radius * 0.98 + 0.28 * np.cos(angle), 0 * angle, height * 0.5 + 0.3 * height * np.sin(angle)]
    color = random_color(rng)
    return [body.painted(color), sweep(bow, 0.05).painted(color if rng.uniform() < 0.6 else random_color(rng))]


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


def molecule(rng: Rng) -> list[Part]:
    """Balls joined by rods."""
    points = [np.zeros(3)]
    parts = []
    rods = random_color(rng)
    for _ in range(rng.integers(3, 7)):
        direction = rng.normal(size=3)
        start = points[rng.integers(len(points))]
        points.append(start + direction / np.linalg.norm(direction) * rng.uniform(0.6, 0.9))
        parts.append(rod(tuple(start), tuple(points[-1]), 0.06).painted(rods))
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
    width, depth, height, roof = (
        rng.uniform(0.7, 1.2),
        rng.uniform(0.8, 1.6),
        rng.uniform(0.4, 0.8),
        rng.uniform(0.3, 0.7),
    )
    gable = [(-width / 2, 0), (width / 2, 0), (width / 2, height), (0, height + roof * 0.92), (-width / 2, height)]
    walls = standing(extrude(gable, depth)).moved((0, depth / 2, 0))
    w, t = width / 2 + 0.12, 0.1
    drop = roof * 0.12 / (width / 2)
    outline = [
        (-w, height - drop),
        (0, height + roof),
        (w, height - drop),
        (w, height - drop + t),
        (0, height + roof + t),
    ]
    outline = [*outline, (-w, height - drop + t)]
    tiles = standing(extrude(outline, depth + 0.2)).moved((0, depth / 2 + 0.1, 0))
    chimney = box((0.16, 0.16, roof + 0.2)).moved((width * 0.25, depth * 0.2, height))
    return [part.painted(random_color(rng)) for part in (walls, tiles, chimney)]


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


BUILT_RECIPES: tuple[Recipe, ...] = (
    stack,
    cluster,
    arch,
    bridge,
    table,
    chair,
    lattice,
    wire_cube,
    tree,
    mug,
    stairs,
    molecule,
    lamp,
    figure,
    castle,
    house,
    wheel,
    letter,
    potted_plant,
    rocket,
)
