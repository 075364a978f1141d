"""Procedural objects and lights: deterministic, varied, in place."""

import numpy as np
import pytest

from shadowlab.tasks.shadow.light import check_light
from shadowlab.tasks.shadow.render.lights import choose_light
from shadowlab.tasks.shadow.render.objects import RECIPES, placed_object, procedural_object
from shadowlab.tasks.shadow.render.placement import MAX_HEIGHT, MAX_RADIUS, rest_on_ground
from shadowlab.tasks.shadow.render.shapes import Part, box


def all_vertices(parts: list[Part]) -> np.ndarray:
    return np.vstack([part.vertices[part.faces].reshape(-1, 3) for part in parts])


@pytest.mark.parametrize("index", range(3 * len(RECIPES)))
def test_objects_are_sound_and_rest_on_the_ground(index: int) -> None:
    parts = placed_object(1, index)
    for part in parts:
        assert np.isfinite(part.vertices).all()
        assert part.faces.min() >= 0
        assert part.faces.max() < len(part.vertices)
        assert all(0 < value < 1 for value in part.color)
    vertices = all_vertices(parts)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    radius = np.linalg.norm(vertices[:, :2], axis=1).max()
    assert low[2] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(low[:2], -high[:2], atol=1e-9)
    assert max(high[2] / MAX_HEIGHT, radius / MAX_RADIUS) == pytest.approx(1)


def test_objects_are_a_function_of_seed_and_index() -> None:
    first, again = procedural_object(3, 5), procedural_object(3, 5)
    for a, b in zip(first, again, strict=True):
        assert a.vertices.tobytes() == b.vertices.tobytes()
        assert a.color == b.color
    others = [procedural_object(4, 5), procedural_object(3, 6)]
    assert all(all_vertices(other).tobytes() != all_vertices(first).tobytes() for other in others)


def test_each_recipe_comes_once_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered = tuple(lambda rng, k=k: [box((k + 1, 1, 1))] for k in range(len(RECIPES)))
    monkeypatch.setattr("shadowlab.tasks.shadow.render.objects.RECIPES", numbered)
    for start in (0, len(RECIPES)):
        objects = [procedural_object(9, start + k)[0].vertices for k in range(len(RECIPES))]
        lengths = [np.linalg.norm(vertices[1] - vertices[0]) for vertices in objects]
        assert sorted(np.round(lengths, 6)) == list(range(1, len(RECIPES) + 1))


def test_an_object_without_surface_is_refused() -> None:
    vertices = np.array([(0.0, 0, 0), (1, 1, 1), (2, 2, 2)])
    with pytest.raises(ValueError, match="without area"):
        rest_on_ground([Part(vertices, np.array([(0, 1, 2)]))])
    with pytest.raises(ValueError, match="no faces"):
        rest_on_ground([Part(vertices, np.zeros((0, 3), dtype=int))])


def test_lights_are_in_range_spread_and_independent_of_their_number() -> None:
    lights = np.array([[choose_light(0, i, j) for j in range(4)] for i in range(50)])
    for theta, phi, size in lights.reshape(-1, 3):
        check_light(theta, phi, size, "test")
        assert phi < 360
    assert choose_light(0, 7, 2) == choose_light(0, 7, 2)
    assert choose_light(0, 7, 2) != choose_light(1, 7, 2)
    # Quarter by quarter, each of the three values is used about evenly, and no two lights of an object are near.
    for column, high in ((0, 45), (1, 360), (2, 6)):
        values = lights[..., column].ravel() - (2 if column == 2 else 0)
        share = np.histogram(values, bins=4, range=(0, high))[0] / len(values)
        assert (abs(share - 0.25) < 0.08).all()
    turn = np.abs(lights[:, :, None, 1] - lights[:, None, :, 1])[:, ~np.eye(4, dtype=bool)]
    assert np.minimum(turn, 360 - turn).min() > 2
