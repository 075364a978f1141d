"""The rule of the flip against Mitsuba: the picture of a mirrored object under the mirrored light."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shadowlab.tasks.shadow.light import mirrored_light
from shadowlab.tasks.shadow.render.objects import placed_object
from shadowlab.tasks.shadow.render.scene import SceneObject, mitsuba
from shadowlab.tasks.shadow.render.shapes import Part

pytest.importorskip("mitsuba", reason="rendering is optional: pip install mitsuba trimesh")

SIZE, SAMPLES = 64, 256
TOLERANCE = 0.01  # RMSE; what the noise of 256 samples leaves is less


def mirrored_mesh(parts: list[Part]) -> list[Part]:
    """At the plane x = 0; faces are turned over, so that their outsides stay outside."""
    return [Part(part.vertices * (-1, 1, 1), part.faces[:, ::-1], part.color) for part in parts]


def rmse(first: NDArray, second: NDArray) -> float:
    return float(np.sqrt(((first.astype(np.float64) - second) ** 2).mean())) / 255


@pytest.mark.parametrize(("theta", "phi", "size"), [(40.0, 30.0, 2.0), (30.0, 200.0, 4.0)])
def test_only_180_minus_phi_gives_the_mirrored_picture(theta: float, phi: float, size: float) -> None:
    """The three rules that look right fail the same test."""
    parts = placed_object(seed=3, index=1)
    rules = {
        "180 - phi": float(mirrored_light(torch.tensor([theta, phi, size]))[1]),
        "phi": phi,
        "-phi": -phi % 360,
        "phi + 180": (phi + 180) % 360,
    }
    with mitsuba() as mi:
        thing, other = SceneObject(mi, parts), SceneObject(mi, mirrored_mesh(parts))
        shadow = thing.render_shadow(theta, phi, size, SIZE, SAMPLES, seed=5)[:, ::-1]
        others = {rule: other.render_shadow(theta, angle, size, SIZE, SAMPLES, seed=6) for rule, angle in rules.items()}
        masks = [one.render_object(SIZE, SAMPLES)[1] for one in (thing, other)]
    errors = {rule: rmse(shadow, picture) for rule, picture in others.items()}
    assert errors.pop("180 - phi") < TOLERANCE
    assert min(errors.values()) > 5 * TOLERANCE, errors
    assert rmse(masks[0][:, ::-1], masks[1]) < TOLERANCE
    assert rmse(masks[0], masks[1]) > 5 * TOLERANCE, "an object that is its own mirror image proves nothing"
