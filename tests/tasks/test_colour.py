"""sRGB and linear: the standard's figures, there and back, and the batch that says which it is in."""

import pytest
import torch

from shadowlab.tasks.albedo import AlbedoSample, collate, converted, to_linear, to_srgb

LEVELS = torch.linspace(0, 1, 100_001)


def test_figures_of_the_standard() -> None:
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.21404114, abs=1e-7)
    assert float(to_linear(torch.tensor(0.02))) == pytest.approx(0.02 / 12.92, abs=1e-9)
    assert float(to_srgb(torch.tensor(0.18))) == pytest.approx(0.46135613, abs=1e-7)
    for curve in (to_linear, to_srgb):
        assert curve(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize(("there", "back"), [(to_linear, to_srgb), (to_srgb, to_linear)])
def test_there_and_back_is_the_same_to_a_millionth(there, back) -> None:  # type: ignore[no-untyped-def]
    assert float((back(there(LEVELS)) - LEVELS).abs().max()) < 1e-6
    assert bool((there(LEVELS).diff() > 0).all())


@pytest.mark.parametrize("curve", [to_linear, to_srgb])
def test_gradients_are_finite_at_both_ends(curve) -> None:  # type: ignore[no-untyped-def]
    levels = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    curve(levels).sum().backward()
    assert levels.grad is not None and bool(levels.grad.isfinite().all()) and bool((levels.grad > 0).all())


def test_a_picture_is_converted_where_the_spaces_differ() -> None:
    assert converted(LEVELS, "srgb", "srgb") is LEVELS
    assert torch.equal(converted(LEVELS, "srgb", "linear"), to_linear(LEVELS))
    assert torch.equal(converted(LEVELS, "linear", "srgb"), to_srgb(LEVELS))


def test_a_batch_is_of_one_space() -> None:
    picture = torch.rand(3, 8, 8)
    srgb, linear = (AlbedoSample("a", "o", picture, picture, picture[:1], space) for space in ("srgb", "linear"))
    batch = collate([linear, linear])
    assert batch.space == batch.select(torch.tensor([1])).space == batch.to("cpu").space == "linear"
    with pytest.raises(ValueError, match="one colour space"):
        collate([srgb, linear])
