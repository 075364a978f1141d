"""Shadows without learning, against renders, closed forms and the symmetry of the scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.baselines import BASELINES, all_black, drop_shadow, inflated_silhouette, standing_point
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.metrics import per_image_metrics
from shadowlab.tasks.shadow.samples import Sample
from shadowlab.tasks.shadow.view import default_view

VIEW = default_view()
LIGHTS = [(35.0, 20.0, 2.0), (10.0, 130.0, 8.0), (45.0, 270.0, 5.0), (0.0, 0.0, 2.0)]


def _ball(height: int = 128, width: int = 128, row: float = 64, column: float = 64, radius: float = 20) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    embedded = open_dataset("embedded", 128)
    return [embedded[i] for i in range(len(embedded))]


def _scores(samples: list[Sample], name: str, turned: float = 0.0) -> dict[str, float]:
    """Mean metrics of a baseline, its light turned by so many degrees."""
    maps = []
    for sample in samples:
        theta, phi, size = sample.light.tolist()
        maps.append(BASELINES[name](sample.mask[0].numpy(), theta, (phi + turned) % 360, size, VIEW))
    truth = torch.stack([sample.shadow for sample in samples])
    metrics = per_image_metrics(torch.from_numpy(np.stack(maps))[:, None], truth)
    return {metric: float(values.mean()) for metric, values in metrics.items()}


def test_inflated_silhouette_is_near_the_renders_and_a_drop_shadow_is_not(samples: list[Sample]) -> None:
    inflated, drop = _scores(samples, "inflated silhouette"), _scores(samples, "drop shadow")
    assert inflated["soft_iou"] >= 0.60 and inflated["zncc"] >= 0.80
    assert drop["soft_iou"] < 0.30
    black = _scores(samples, "all black")
    assert black["soft_iou"] == 0.0 and black["zncc"] == 0.0
    assert inflated["rmse"] < black["rmse"] < drop["rmse"]
    assert _scores(samples, "inflated silhouette", turned=180.0)["soft_iou"] < 0.35


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96), (513, 400)])
def test_mirrored_mask_under_the_mirrored_light_throws_the_mirrored_shadow(size: tuple[int, int]) -> None:
    height, width = size
    mask = _ball(height, width, height * 0.55, width * 0.4, min(size) * 0.15)
    mask |= _ball(height, width, height * 0.4, width * 0.6, min(size) * 0.06)
    for theta, phi, light_size in LIGHTS:
        for name, draw in BASELINES.items():
            shadow = draw(mask, theta, phi, light_size, VIEW)
            mirrored = draw(mask[:, ::-1], theta, (180.0 - phi) % 360.0, light_size, VIEW)
            assert shadow.shape == mask.shape and shadow.dtype == np.float32
            assert 0.0 <= shadow.min() and shadow.max() <= 1.0
            assert np.abs(mirrored[:, ::-1] - shadow).max() < 1e-3, (name, theta, phi)


def test_ball_throws_the_ellipse_that_geometry_says() -> None:
    """A ball of radius R on the ground under a small light at theta: its shadow is about R / cos theta long on each
    side of its middle, R wide, and R tan theta away from where it stands."""
    mask = _ball(row=56, radius=16)
    x, y = standing_point(mask, VIEW)
    radius = 16 * VIEW.unit(128, 128)
    view = replace(VIEW, thickness=1.0)
    column, row = np.meshgrid(np.arange(128) + 0.5, np.arange(128) + 0.5)
    ground_x, ground_y = view.ground(column, row, 128, 128)
    for phi in (0.0, 90.0, 180.0):
        shadow = inflated_silhouette(mask, 30.0, phi, 2.0, view) > 0.5
        middle = np.array(
            [ground_x[shadow].min() + ground_x[shadow].max(), ground_y[shadow].min() + ground_y[shadow].max()]
        )
        away = -np.array([np.cos(np.radians(phi)), np.sin(np.radians(phi))])
        along = (middle / 2 - (x, y)) @ away
        assert 0.3 * radius < along < 1.7 * radius, phi


@pytest.mark.parametrize(
    "mask",
    {
        "empty": np.zeros((64, 64)),
        "full": np.ones((64, 64)),
        "one pixel": _ball(64, 64, 40.5, 10.5, 0.6),
        "touches every border": np.pad(np.zeros((60, 60)), 2, constant_values=1),
        "bottom border": _ball(64, 64, 64, 30, 12),
        "top corner": _ball(64, 64, 0, 0, 12),
        "several parts": _ball(64, 64, 20, 20, 6) | _ball(64, 64, 50, 48, 5) | _ball(64, 64, 8, 60, 3),
        "a line": _ball(64, 64, 30, 30, 20) & (np.arange(64) == 30),
        "one row": np.ones((1, 64)),
        "large": _ball(1024, 700, 600, 200, 90),
        "soft": np.linspace(0, 1, 64 * 64).reshape(64, 64),
    }.values(),
)
@pytest.mark.parametrize("elevation", [5.0, 32.0, 75.0])
def test_any_mask_at_any_place_has_a_shadow_map(mask: np.ndarray, elevation: float) -> None:
    view = replace(VIEW, elevation=elevation, field_of_view=60.0)
    for light in LIGHTS:
        for draw in BASELINES.values():
            shadow = draw(mask, *light, view)
            assert shadow.shape == mask.shape
            assert np.isfinite(shadow).all() and 0 <= shadow.min() and shadow.max() <= 1
            assert (mask >= 0.5).any() or not shadow.any()


def test_object_away_from_the_middle_has_its_shadow_at_its_foot() -> None:
    for row, column in [(110, 20), (30, 100)]:
        mask = _ball(row=row, column=column, radius=8)
        shadow = inflated_silhouette(mask, 0.0, 0.0, 2.0, VIEW)
        rows, columns = np.nonzero(shadow > 0.5)
        assert abs(columns.mean() - column) < 6 and -2 < rows.mean() - row < 12


def test_larger_picture_has_the_same_shadow() -> None:
    small, large = _ball(), _ball(1024, 1024, 512, 512, 160)
    expected = inflated_silhouette(small, 35.0, 60.0, 4.0, VIEW)
    shrunk = inflated_silhouette(large, 35.0, 60.0, 4.0, VIEW).reshape(128, 8, 128, 8).mean(axis=(1, 3))
    assert np.minimum(shrunk, expected).sum() / np.maximum(shrunk, expected).sum() > 0.93


def test_wrong_light_is_refused() -> None:
    with pytest.raises(UserError, match="theta = 50"):
        inflated_silhouette(_ball(), 50.0, 0.0, 2.0, VIEW)
    with pytest.raises(UserError, match="size = 1"):
        drop_shadow(_ball(), 20.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="a mask is"):
        all_black(np.zeros((1, 8, 8)))
