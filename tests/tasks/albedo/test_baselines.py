"""Predictions without a model, on pairs whose light is known."""

import numpy as np
import pytest
import torch

from shadowlab.tasks.albedo import AlbedoBatch, ColourSpace, to_linear
from shadowlab.tasks.albedo.baselines import BASELINES, grey_world, integrated, retinex
from shadowlab.tasks.albedo.metrics import per_image_metrics
from tests.tasks.albedo.pairs import albedo_of, batch_of, light_of


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("space", ["srgb", "linear"])
def test_each_gives_pictures_in_range_and_the_same_whatever_the_space(name: str, space: ColourSpace) -> None:
    batch, other = batch_of(2, space=space), batch_of(2, space="linear")
    found, wanted = BASELINES[name](batch), BASELINES[name](other)
    assert found.shape == batch.beauty.shape and found.dtype == torch.float32
    assert 0 <= found.min() and found.max() <= 1
    linear = to_linear(found) if space == "srgb" else found
    assert torch.allclose(linear, wanted, atol=2e-3)


def test_grey_world_takes_the_colour_of_the_light_away_and_leaves_its_shadows() -> None:
    grey = torch.stack([albedo_of(i).mean(dim=0, keepdim=True).expand(3, -1, -1) for i in range(2)])
    light = torch.stack([light_of(i) for i in range(2)])
    beauty = grey * light
    batch = AlbedoBatch(["a", "b"], ["a", "b"], beauty, grey, torch.ones(2, 1, 32, 32), "linear")
    found = grey_world(batch)
    assert float((found.amax(dim=1) - found.amin(dim=1)).max()) < 1e-5
    assert float((beauty.amax(dim=1) - beauty.amin(dim=1)).max()) > 0.05
    shading = found.mean(dim=1) / grey[:, 0]
    assert float(shading.std()) > 0.05


def test_grey_world_looks_at_valid_pixels_alone() -> None:
    batch = batch_of(1, space="linear")
    valid = torch.zeros(1, 1, 32, 32)
    valid[..., :16] = 1
    spoilt = torch.where(valid > 0, batch.beauty, torch.rand_like(batch.beauty))
    pair = [
        grey_world(AlbedoBatch(["a"], ["a"], beauty, batch.albedo, valid, "linear"))[..., :16]
        for beauty in (batch.beauty, spoilt)
    ]
    assert torch.allclose(*pair, atol=1e-6)


def test_retinex_takes_smooth_light_away_where_surfaces_have_sharp_colours() -> None:
    batch = batch_of(6, space="linear")
    own, beauty = (
        per_image_metrics(one, batch.albedo, batch.valid, "linear")["si_rmse"].mean()
        for one in (retinex(batch), batch.beauty)
    )
    assert own < 0.8 * beauty


@pytest.mark.parametrize("size", [(7, 12), (16, 16), (9, 8)])
def test_integration_gives_a_picture_back_from_its_steps(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).normal(size=size)
    found = integrated(np.diff(picture, axis=0), np.diff(picture, axis=1))
    assert np.abs(found - (picture - picture.mean())).max() < 1e-10
