"""Metrics against closed forms, invariances and torchmetrics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from shadowlab.metrics import MAX_PSNR_DB, psnr, r_squared, rmse, scale_invariant_rmse, soft_iou, ssim, zncc
from shadowlab.tasks.shadow.metrics import per_image_metrics

SIDE = 16


def images(seed: int, count: int = 3) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@st.composite
def odd_images(draw: st.DrawFn) -> Tensor:
    """One image in [0, 1]: noise, constants, single pixels, values near the smallest float."""
    base = images(draw(st.integers(0, 1000)), 1)
    scale = draw(st.sampled_from([0.0, 1e-45, 1e-20, 1e-4, 1.0]))
    keep = draw(st.sampled_from([0.0, 0.02, 1.0]))
    constant = draw(st.sampled_from([0.0, 0.0, 1e-45, 0.3, 1.0]))
    mask = images(draw(st.integers(0, 1000)), 1) < keep
    return (base * scale * mask + constant).clamp(0, 1)


@given(odd_images(), odd_images())
def test_every_metric_is_in_its_range(p: Tensor, g: Tensor) -> None:
    values = {name: float(value) for name, value in per_image_metrics(p, g).items()}
    assert 0 <= values["rmse"] <= 1
    assert 0 <= values["si_rmse"] <= values["rmse"] + 1e-6  # a = 1 is one of the scales
    assert -1 <= values["zncc"] <= 1
    assert 0 <= values["soft_iou"] <= 1
    assert values["psnr"] >= 0
    assert -1.0001 <= values["ssim"] <= 1.0001


def test_equal_images() -> None:
    g = images(0)
    values = per_image_metrics(g, g)
    assert torch.equal(values["rmse"], torch.zeros(3))
    assert values["si_rmse"].max() < 1e-7
    torch.testing.assert_close(values["zncc"], torch.ones(3))
    assert torch.equal(values["soft_iou"], torch.ones(3))
    assert torch.equal(values["psnr"], torch.full((3,), MAX_PSNR_DB))  # finite, or it would spoil every mean
    torch.testing.assert_close(values["ssim"], torch.ones(3))


@pytest.mark.parametrize("offset", [0.1, 0.25])
def test_known_offset(offset: float) -> None:
    g = images(0) * 0.5
    p = g + offset
    torch.testing.assert_close(rmse(p, g), torch.full((3,), offset))
    torch.testing.assert_close(psnr(p, g), torch.full((3,), -20 * math.log10(offset)))
    torch.testing.assert_close(zncc(p, g), torch.ones(3))


def test_soft_iou_by_hand() -> None:
    p = torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 2, 2)
    g = torch.tensor([0.5, 0.5, 0.5, 0.00]).view(1, 1, 2, 2)
    assert float(soft_iou(p, g)) == pytest.approx((0.5 + 0.5) / (0.5 + 0.5 + 1.0 + 0.25))


def test_all_black() -> None:
    """The prediction that a low RMSE can hide: IoU 0, ZNCC 0, and si-RMSE is plain RMSE."""
    g = images(0)
    black = torch.zeros_like(g)
    assert torch.equal(soft_iou(black, g), torch.zeros(3))
    assert torch.equal(zncc(black, g), torch.zeros(3))
    assert torch.equal(scale_invariant_rmse(black, g), rmse(black, g))
    assert torch.equal(soft_iou(black, black), torch.ones(3))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1.0])
def test_zncc_of_a_constant_image_is_zero(constant: float) -> None:
    flat = torch.full((1, 1, SIDE, SIDE), constant)
    assert float(zncc(flat, images(0, 1))) == 0.0
    assert float(zncc(images(0, 1), flat)) == 0.0


@given(st.floats(0.1, 0.9), st.floats(0, 0.1))
def test_zncc_ignores_gain_and_offset(gain: float, offset: float) -> None:
    p, g = images(0), images(1)
    torch.testing.assert_close(zncc(gain * p + offset, g), zncc(p, g), rtol=0, atol=1e-5)
    torch.testing.assert_close(zncc(1 - p, g), -zncc(p, g), rtol=0, atol=1e-5)


@given(st.floats(1e-3, 1.0))
def test_si_rmse_ignores_the_predictions_scale(scale: float) -> None:
    p, g = images(0), images(1)
    torch.testing.assert_close(scale_invariant_rmse(scale * p, g), scale_invariant_rmse(p, g), rtol=0, atol=1e-6)
    assert (scale_invariant_rmse(scale * g, g) < 1e-6).all()


def test_si_rmse_uses_the_best_scale() -> None:
    p, g = images(0), images(1)
    best = torch.stack([rmse(a * p, g) for a in torch.linspace(0, 2, 401)]).amin(dim=0)
    torch.testing.assert_close(scale_invariant_rmse(p, g), best, rtol=1e-4, atol=0)


def test_parity_with_torchmetrics() -> None:
    p, g = images(0), images(1)
    for i in range(3):
        one = (p[i : i + 1], g[i : i + 1])
        assert psnr(p, g)[i] == peak_signal_noise_ratio(*one, data_range=1.0)
        assert float(ssim(p, g)[i]) == pytest.approx(float(structural_similarity_index_measure(*one, data_range=1.0)))


def test_an_image_does_not_depend_on_its_batch() -> None:
    p, g = images(0), images(1)
    together = per_image_metrics(p, g)
    for name, values in per_image_metrics(p[1:2], g[1:2]).items():
        torch.testing.assert_close(values[0], together[name][1], rtol=1e-6, atol=0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        per_image_metrics(images(0), images(1, 2))


def test_r_squared() -> None:
    target = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(3.0).view(1, 3, 1, 1)
    means = target.mean(dim=(0, 2, 3), keepdim=True).expand_as(target)
    assert r_squared(target, target) == 1.0
    assert r_squared(means, target) == pytest.approx(0.0, abs=1e-6)
    assert r_squared((target + means) / 2, target) == pytest.approx(0.75, abs=1e-6)
    assert r_squared(means + 10, target) < -10


def test_r_squared_of_a_constant_target_is_not_mistaken_for_nan() -> None:
    constant = torch.ones(2, 4, 3, 3)
    assert r_squared(constant, constant) == 1.0
    assert r_squared(constant + 1, constant) == -math.inf
    assert math.isnan(r_squared(constant * math.nan, constant))
