"""Building blocks: closed, facing outwards, of the right volume."""

import math

import numpy as np
import pytest

from shadowlab.tasks.shadow.render import outlines
from shadowlab.tasks.shadow.render.normals import crease_corners
from shadowlab.tasks.shadow.render.recipe_tools import cylinder_shell, rod
from shadowlab.tasks.shadow.render.shapes import (
    Part,
    box,
    cylinder,
    extrude,
    extrude_ring,
    lathe,
    rotation,
    rotation_between,
    sphere,
    superquadric,
    sweep,
    torus,
    triangulate,
)

CIRCLE = outlines.regular(128)
T = np.linspace(0, 2 * math.pi, 160, endpoint=False)
KNOT = np.c_[(2 + np.cos(3 * T)) * np.cos(2 * T), (2 + np.cos(3 * T)) * np.sin(2 * T), np.sin(3 * T)]

SOLIDS = {
    "box": (box((1, 2, 3)), 6.0),
    "pyramid": (box((1, 2, 3), taper=0), 2.0),
    "cylinder": (cylinder(1, 2), 2 * math.pi),
    "cone": (cylinder(1, 3, 0), math.pi),
    "torus": (torus(2, 0.5), 2 * math.pi**2 * 2 * 0.25),
    "ellipsoid": (superquadric((1, 2, 3)), 8 * math.pi),
    "pipe": (cylinder_shell(2, 1, 1), 3 * math.pi),
    "vase": (lathe(outlines.walled(np.array([(1.0, 0.0), (1.0, 2.0)]), 0.5, 0.5)), math.pi * (2 - 0.25 * 1.5)),
    "star": (extrude(outlines.star(5, 0.5), 2), 2 * 5 * 0.5 * math.sin(math.pi / 5)),
    "twisted": (extrude(outlines.cross(0.5), 1, twist=30), 2 * 2 * 0.5 - 0.25),
    "washer": (extrude_ring(CIRCLE, CIRCLE * 0.5, 1), 0.75 * math.pi),
    "bar": (rod((0, 0, 0), (1, 2, 2), 0.5), 3 * math.pi / 4),
    "tube": (sweep(np.c_[np.linspace(0, 3, 20), np.zeros((20, 2))], 0.5), 3 * math.pi / 4),
    "knot": (sweep(KNOT, 0.1, closed=True), None),
}


def directed_edges(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each face's edges, as numbers of distinct positions."""
    _, place = np.unique(np.round(part.vertices, 6), axis=0, return_inverse=True)
    faces = place.ravel()[part.faces]
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    real = start != end
    return start[real], end[real]


def volume(part: Part) -> float:
    a, b, c = (part.vertices[part.faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_closed_and_face_outwards(name: str) -> None:
    part, expected = SOLIDS[name]
    start, end = directed_edges(part)
    forth, back = sorted(zip(start, end, strict=True)), sorted(zip(end, start, strict=True))
    assert forth == back, "an edge without its neighbour: the surface has a gap or a face is turned round"
    if expected is None:
        assert volume(part) > 0
    else:
        assert volume(part) == pytest.approx(expected, rel=0.03)  # round shapes have 16 to 64 sides


@pytest.mark.parametrize(
    "outline",
    [
        outlines.star(7, 0.4),
        outlines.gear(12, 0.2),
        outlines.heart(),
        outlines.crescent(0.5),
        outlines.arrow(0.4),
        outlines.cross(0.4),
        outlines.half_ring(1, 0.6),
        outlines.blob(np.random.default_rng(0)),
    ],
)
def test_triangulation_covers_the_outline(outline: np.ndarray) -> None:
    triangles = outline[triangulate(outline)]
    u, v = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    areas = (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2
    x, y = outline.T
    shoelace = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx(shoelace)


def test_clockwise_outline_is_refused() -> None:
    with pytest.raises(ValueError, match="counter-clockwise"):
        triangulate(outlines.star(5, 0.5)[::-1])


def test_rotations() -> None:
    np.testing.assert_allclose(rotation("z", 90) @ (1, 0, 0), (0, 1, 0), atol=1e-12)
    np.testing.assert_allclose(rotation("x", 90) @ (0, 1, 0), (0, 0, 1), atol=1e-12)
    for end in ([0, 0, -1.0], [0, 0, 1.0], [1.0, 2.0, -3.0]):
        turn = rotation_between(np.array([0, 0, 2.0]), np.array(end))
        np.testing.assert_allclose(turn @ (0, 0, 1), np.array(end) / np.linalg.norm(end), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)


def test_normals_smooth_a_ball_and_keep_the_edges_of_a_box() -> None:
    ball = crease_corners(sphere(2))
    np.testing.assert_allclose(ball.normals, ball.positions / 2, atol=0.04)
    cube = crease_corners(box((2, 2, 2)).moved((0, 0, -1)))
    assert (np.abs(cube.normals).max(axis=1) > 1 - 1e-9).all()
    assert ((cube.normals * cube.positions).sum(axis=1) > 0).all()


def test_normals_do_not_depend_on_how_many_pairs_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    part = torus(1, 0.4)
    whole = crease_corners(part).normals
    monkeypatch.setattr("shadowlab.tasks.shadow.render.normals._MAX_PAIRS", 100)
    np.testing.assert_allclose(crease_corners(part).normals, whole, atol=1e-12)
