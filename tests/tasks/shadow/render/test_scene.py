"""The shadow itself: against a closed form, and against the paper's geometry."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from shadowlab.tasks.shadow.render import camera
from shadowlab.tasks.shadow.render.camera import camera_origin, project, shadow_window
from shadowlab.tasks.shadow.render.lights import choose_light
from shadowlab.tasks.shadow.render.objects import placed_object
from shadowlab.tasks.shadow.render.scene import _LIFT, BACKGROUND, SceneObject, mitsuba
from shadowlab.tasks.shadow.render.shapes import Part, box, cylinder

pytest.importorskip("mitsuba", reason="rendering is optional: pip install mitsuba trimesh")

SIZE = 64  # pixels
POST = cylinder(0.25, 1.5)


def shadow(parts: list[Part], theta: float, phi: float, size: float, image_size: int = SIZE, spp: int = 64) -> NDArray:
    with mitsuba() as mi:
        return SceneObject(mi, parts).render_shadow(theta, phi, size, image_size, spp, seed=5)


def centroid(picture: NDArray) -> tuple[float, float]:
    """Column and row."""
    weight = picture.astype(np.float64)
    rows, columns = np.indices(picture.shape) + 0.5
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def ground_points(image_size: int, per_side: int) -> NDArray[np.float64]:
    """Where the rays through `per_side` squared places of each pixel meet z = 0; (rows, columns, places, 2)."""
    place = (np.arange(per_side) + 0.5) / per_side
    along = (np.arange(image_size)[:, None] + place).ravel()
    tangent = math.tan(math.radians(camera.FIELD_OF_VIEW / 2))
    screen = (along / image_size * 2 - 1) * tangent
    origin = np.array(camera_origin())
    forward = -origin / np.linalg.norm(origin)
    up = np.cross((1, 0, 0), forward)
    rays = forward + screen[None, :, None] * np.array([1.0, 0, 0]) - screen[:, None, None] * up
    points = origin + rays * (-origin[2] / rays[..., 2:])
    cells = points[..., :2].reshape(image_size, per_side, image_size, per_side, 2)
    return cells.transpose(0, 2, 1, 3, 4).reshape(image_size, image_size, -1, 2)


def irradiance(x0: NDArray, x1: NDArray, y0: NDArray, y1: NDArray) -> NDArray:
    """View factor from a point to a parallel rectangle at distance 1 (Howell's catalogue of configuration factors)."""

    def corner(x: NDArray, y: NDArray) -> NDArray:
        a, b = np.sqrt(1 + x * x), np.sqrt(1 + y * y)
        return (x / a * np.arctan(y / a) + y / b * np.arctan(x / b)) / (2 * math.pi)

    return corner(x1, y1) - corner(x0, y1) - corner(x1, y0) + corner(x0, y0)


def plate_shadow(half_side: float, height: float, size: float, image_size: int) -> NDArray[np.float64]:
    """Exact shadow of a square plate parallel to the ground, centred on z, under a square light straight above.

    Seen from a ground point, the plate hides a rectangle of the light's plane; what is lost is the view factor of
    that rectangle's overlap with the light.
    """
    distance = 8.0
    points = ground_points(image_size, 4)
    light = np.stack([-size / 2 - points, size / 2 - points]) / distance  # (2, ..., 2): low and high, relative
    plate = np.stack([-half_side - points, half_side - points]) / height
    low, high = np.maximum(light[0], plate[0]), np.minimum(light[1], plate[1])
    high = np.maximum(low, high)
    hidden = irradiance(low[..., 0], high[..., 0], low[..., 1], high[..., 1])
    whole = irradiance(light[0, ..., 0], light[1, ..., 0], light[0, ..., 1], light[1, ..., 1])
    return (hidden.sum(axis=-1) / whole.sum(axis=-1)) * 255


@pytest.mark.parametrize(("height", "size"), [(0.5, 2.0), (1.5, 2.0), (1.0, 8.0)])
def test_plate_under_a_light_straight_above_matches_the_closed_form(height: float, size: float) -> None:
    half_side = 0.8
    plate = box((2 * half_side, 2 * half_side, 1e-6)).moved((0, 0, height - _LIFT[2]))
    exact = plate_shadow(half_side, height, size, SIZE)
    rendered = shadow([plate], 0, 0, size, spp=256).astype(float)
    difference = rendered - exact
    assert np.sqrt((difference**2).mean()) < 1.5  # grey levels
    assert abs(difference.mean()) < 0.1
    assert np.abs(difference).max() < 20
    # Next to the edge of the penumbra the sixteen places may miss what the samples hit: look one pixel further.
    around = np.stack([np.roll(exact, shift, (0, 1)) for shift in itertools.product((-1, 0, 1), repeat=2)])
    assert (rendered[around.max(axis=0) == 0] == 0).all()
    assert (rendered[around.min(axis=0) > 254.99] == 255).all()


@pytest.mark.parametrize(("phi", "column", "row"), [(0, -1, 0), (180, 1, 0), (90, 0, 1), (270, 0, -1)])
def test_shadow_falls_away_from_the_light(phi: float, column: int, row: int) -> None:
    """phi = 0 is light from the right, shadow to the left; phi = 90 is light from behind, shadow to the viewer."""
    foot, _ = project(np.zeros((1, 3)), SIZE)
    x, y = centroid(shadow([POST], 40, phi, 2)) - foot[0]
    if column:
        assert x * column > 4
        assert abs(y) < 2
    else:
        assert y * row > 2
        assert abs(x) < 1


def test_larger_theta_makes_a_longer_shadow() -> None:
    reach = []
    for theta in (5, 20, 35, 45):
        columns = np.flatnonzero((shadow([POST], theta, 0, 2) > 64).any(axis=0))
        reach.append(SIZE / 2 - columns.min())
    assert reach == sorted(set(reach))


def test_larger_light_makes_a_softer_shadow() -> None:
    softness = []
    for size in (2, 4, 8):
        picture = shadow([box((1, 1, 1))], 30, 0, size)
        softness.append(((picture > 12) & (picture < 243)).sum() / (picture > 12).sum())
    assert softness == sorted(set(softness))


def test_contact_shadow_begins_at_the_base() -> None:
    """A box's shadow is full right next to it, and the ground under it is dark."""
    picture = shadow([box((1, 1, 1))], 40, 0, 2, image_size=128)
    next_to_box, _ = project(np.array([(-0.55, 0, 0), (0, 0, 0)]), 128)
    for column, row in np.floor(next_to_box).astype(int):
        assert picture[row, column] == 255


def test_nothing_is_occluded_outside_the_window() -> None:
    """The window holds every pixel that a render of the whole picture darkens."""
    whole_frame = (0, 0, SIZE, SIZE)
    for index in range(3):
        parts = placed_object(2, index)
        theta, phi, size = choose_light(2, index, 0)
        vertices = np.vstack([part.vertices for part in parts]) + _LIFT
        left, top, right, bottom = shadow_window(vertices, theta, phi, size, SIZE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shadowlab.tasks.shadow.render.scene.shadow_window", lambda *_: whole_frame)
            whole = shadow(parts, theta, phi, size, spp=16)
        rows, columns = np.nonzero(whole)
        assert left <= columns.min()
        assert columns.max() < right
        assert top <= rows.min()
        assert rows.max() < bottom
        assert (left, top, right, bottom) != whole_frame


def test_window_is_the_whole_picture_where_the_penumbra_passes_the_camera() -> None:
    tall = np.array([(0, 0, 2.6), (0, 0, 0)])
    assert shadow_window(tall, 45, 90, 8, SIZE) == (0, 0, SIZE, SIZE)


def test_object_picture_and_mask() -> None:
    red = (0.8, 0.02, 0.02)
    with mitsuba() as mi:
        picture, mask = SceneObject(mi, [box((1, 1, 1)).painted(red)]).render_object(SIZE, 64)
    assert picture.shape == (SIZE, SIZE, 3)
    assert (picture[mask == 0] == BACKGROUND).all()
    assert 0.03 < (mask > 127).mean() < 0.2
    inside = picture[mask == 255].astype(float)
    assert (inside[:, 0] > 4 * inside[:, 1]).all()
    pixels, _ = project(np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)]), SIZE)
    rows, columns = np.nonzero(mask)
    assert columns.min() == int(pixels[:, 0].min())
    assert columns.max() == int(pixels[:, 0].max())
    assert rows.min() == int(pixels[:, 1].min())
    assert rows.max() == int(pixels[:, 1].max())


def test_the_variant_in_use_is_restored() -> None:
    import mitsuba as mi

    before = mi.variant()
    mi.set_variant("scalar_spectral")
    with mitsuba() as scalar:
        assert scalar.variant() == "scalar_rgb"
    assert mi.variant() == "scalar_spectral"
    if before is not None:
        mi.set_variant(before)
