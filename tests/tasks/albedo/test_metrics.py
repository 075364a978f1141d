"""Metrics of albedo: against other implementations, over valid pixels, in the declared space, with a direction."""

import math

import pytest
import torch

from shadowlab import metrics as plain
from shadowlab.seeding import normal
from shadowlab.tasks.albedo import ColourSpace, converted
from shadowlab.tasks.albedo.metrics import (
    METRICS,
    SPACES,
    per_image_metrics,
    wrong_space_loss_db,
)
from tests.tasks.albedo.pairs import batch_of

SPACES_OF_DATA: tuple[ColourSpace, ...] = ("srgb", "linear")


def noised(truth: torch.Tensor, strength: float) -> torch.Tensor:
    return (truth + strength * normal(truth.shape, 0, "noise")).clamp(0, 1)


@pytest.mark.parametrize("space", SPACES_OF_DATA)
def test_without_a_mask_they_are_those_of_whole_pictures(space: ColourSpace) -> None:
    batch = batch_of(3, space=space)
    prediction = noised(batch.albedo, 0.1)
    found = per_image_metrics(prediction, batch.albedo, batch.valid, space)
    srgb, linear = ([converted(one, space, to) for one in (prediction, batch.albedo)] for to in ("srgb", "linear"))
    assert torch.allclose(found["psnr"], plain.psnr(*srgb), atol=1e-4)
    assert torch.allclose(found["rmse"], plain.rmse(*srgb), atol=1e-6)
    assert torch.allclose(found["ssim"], plain.ssim(*srgb), atol=1e-5)
    assert torch.allclose(found["si_rmse"], plain.scale_invariant_rmse(*linear), atol=1e-6)


def test_the_truth_is_perfect_and_less_noise_is_better_in_the_stated_direction() -> None:
    batch = batch_of(2)
    perfect, near, far = (
        per_image_metrics(noised(batch.albedo, strength), batch.albedo, batch.valid, "srgb")
        for strength in (0.0, 0.05, 0.2)
    )
    for metric in METRICS:
        sign = 1 if metric.higher_is_better else -1
        assert (sign * perfect[metric.name] > sign * near[metric.name]).all(), metric.name
        assert (sign * near[metric.name] > sign * far[metric.name]).all(), metric.name
        assert metric.name in SPACES
    assert perfect["rmse"].max() == 0 and perfect["si_rmse"].max() < 1e-7
    assert perfect["psnr"].min() == 100 and perfect["ssim"].min() == pytest.approx(1, abs=1e-4)  # float32 variances


def test_what_is_not_valid_counts_for_nothing() -> None:
    valid = torch.ones(1, 32, 32)
    valid[:, :, 20:] = 0
    batch = batch_of(2, valid=valid)
    prediction = noised(batch.albedo, 0.1)
    found = per_image_metrics(prediction, batch.albedo, batch.valid, "srgb")
    spoilt = torch.where(batch.valid > 0, prediction, 1 - prediction)
    other = per_image_metrics(spoilt, batch.albedo, batch.valid, "srgb")
    for name, values in found.items():
        assert torch.equal(values, other[name]), name
    cut = plain.rmse(prediction[..., :20], batch.albedo[..., :20])
    assert torch.allclose(found["rmse"], cut, atol=1e-6)


def test_a_picture_without_a_valid_pixel_and_shapes_that_do_not_fit_are_refused() -> None:
    batch = batch_of(2)
    with pytest.raises(ValueError, match="no valid pixel"):
        per_image_metrics(batch.albedo, batch.albedo, batch.valid * 0, "srgb")
    with pytest.raises(ValueError, match="do not fit together"):
        per_image_metrics(batch.albedo[:, :, 1:], batch.albedo, batch.valid, "srgb")


def test_si_rmse_forgives_one_scale_of_linear_light_and_no_scale_of_a_channel() -> None:
    batch = batch_of(2, space="linear")
    half = per_image_metrics(batch.albedo * 0.5, batch.albedo, batch.valid, "linear")
    assert half["si_rmse"].max() < 1e-6 and half["rmse"].min() > 0.05
    tinted = batch.albedo * torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert per_image_metrics(tinted, batch.albedo, batch.valid, "linear")["si_rmse"].min() > 0.01
    black = per_image_metrics(batch.albedo * 0, batch.albedo, batch.valid, "linear")
    assert torch.allclose(black["si_rmse"], plain.rmse(batch.albedo * 0, batch.albedo), atol=1e-6)


@pytest.mark.parametrize("space", SPACES_OF_DATA)
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_a_prediction_in_the_wrong_space_loses_a_known_number_of_decibels(space: ColourSpace, level: float) -> None:
    """sRGB 0.5 is linear 0.2140; taken for the other, the error is their distance."""
    truth = torch.full((1, 3, 16, 16), level)
    valid = torch.ones(1, 1, 16, 16)
    other: ColourSpace = "linear" if space == "srgb" else "srgb"
    given = float(converted(torch.tensor(level, dtype=torch.float64), space, other))
    ends = [float(converted(torch.tensor(one, dtype=torch.float64), space, "srgb")) for one in (given, level)]
    expected = -20 * math.log10(abs(ends[0] - ends[1]))
    assert float(wrong_space_loss_db(truth, valid, space)) == pytest.approx(expected, abs=1e-3)
