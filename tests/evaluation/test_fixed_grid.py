"""The fixed grid: numbers that can be compared, so nothing but the weights may change them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shadowlab.encoded_batch import Conditions
from shadowlab.evaluation import fixed_grid
from shadowlab.evaluation.fixed_grid import FixedGrid
from shadowlab.models.precision import POLICIES
from shadowlab.models.vae import load_vae
from shadowlab.settings import Config
from shadowlab.tasks import open_task
from shadowlab.tasks.shadow import task as shadow_task
from shadowlab.tasks.shadow.dataset import open_dataset
from shadowlab.tasks.shadow.samples import Batch, collate
from shadowlab.tasks.shadow.task import ShadowTask
from tests import tiny

FP32 = POLICIES["fp32"]


@pytest.fixture(scope="module")
def task(stage_folder: dict[str, Path]) -> ShadowTask:
    return open_task(Config(), vae=load_vae(str(stage_folder["vae"])))


@pytest.fixture(scope="module")
def samples(stage_folder: dict[str, Path]) -> list[Any]:
    dataset = open_dataset(stage_folder["data"], tiny.SIDE * 8)
    return [dataset[i] for i in range(4)]


def grid(task: ShadowTask, batch: Batch, *, seed: int = 0, chunk: int = 4) -> FixedGrid:
    return FixedGrid(task, batch, timesteps=(0.0, 0.5, 0.9), num_noises=2, seed=seed, chunk=chunk)


def test_the_same_weights_give_the_same_numbers(task: ShadowTask, samples: list[Any], hub_folder: Path) -> None:
    unet = tiny.shadow_unet(hub_folder)
    first = grid(task, collate(samples)).evaluate(unet, FP32)
    torch.manual_seed(5)
    again = grid(task, collate(samples)).evaluate(unet, FP32)
    assert first.numbers() == again.numbers()
    other_noise = grid(task, collate(samples), seed=1).evaluate(unet, FP32)
    assert other_noise.loss != first.loss


def test_chunks_and_order_do_not_matter(task: ShadowTask, samples: list[Any], hub_folder: Path) -> None:
    """Noise follows a sample's id, not its row."""
    unet = tiny.shadow_unet(hub_folder)
    wanted = grid(task, collate(samples)).evaluate(unet, FP32).numbers()
    for batch, chunk in ((collate(samples), 3), (collate(samples[::-1]), 4)):
        assert grid(task, batch, chunk=chunk).evaluate(unet, FP32).numbers() == pytest.approx(wanted, rel=1e-4)


def test_every_sample_and_every_draw_has_noise_of_its_own(
    task: ShadowTask, samples: list[Any], hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where the model sees it: at t = 0 x_t is the noise. One noise for all would flatter or slander a model."""
    seen: list[Tensor] = []
    original = fixed_grid.predict

    def spy(model: Any, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        if len(x_t) == 4:  # not the one sample whose light is changed
            seen.append(x_t.clone())
        return original(model, x_t, timesteps, conditions)

    monkeypatch.setattr(fixed_grid, "predict", spy)
    batch = collate(samples)
    same = replace(batch, ids=[*batch.ids[:3], "another"])  # the last sample under another name
    FixedGrid(task, batch, timesteps=(0.0,), num_noises=3, seed=0, chunk=4).evaluate(tiny.shadow_unet(hub_folder), FP32)
    drawn = seen[::2]  # each noise is judged and then generated from
    assert len(seen) == 6 and all(torch.equal(a, b) for a, b in zip(drawn, seen[1::2], strict=True))
    noises = torch.cat(drawn).flatten(1)
    assert len(noises) == 12
    assert torch.cdist(noises, noises).add(torch.eye(12) * 9).min() > 1.0  # no two alike, of 12
    assert abs(float(noises.mean())) < 0.15 and float(noises.std()) == pytest.approx(1.0, abs=0.1)
    seen.clear()
    FixedGrid(task, same, timesteps=(0.0,), num_noises=1, seed=0, chunk=4).evaluate(tiny.shadow_unet(hub_folder), FP32)
    assert torch.equal(seen[0][:3], drawn[0][:3]) and not torch.equal(seen[0][3], drawn[0][3])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(
    task: ShadowTask, samples: list[Any], hub_folder: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    unet = tiny.shadow_unet(hub_folder).train(training)
    result = grid(task, collate(samples)).evaluate(unet, FP32)
    assert unet.training is training
    assert all(p.grad is None for p in unet.parameters())
    assert not result.prediction.requires_grad

    def interrupted(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(fixed_grid, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grid(task, collate(samples)).evaluate(unet, FP32)
    assert unet.training is training


def test_a_model_that_knows_the_answer(
    task: ShadowTask, samples: list[Any], hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss 0, R^2 1, and pictures that are the VAE's own round trip. The untrained VAE's latents tell samples apart."""
    judge = grid(task, collate(samples))
    data = judge.encoded.data

    def oracle(model: Any, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return (data - x_t) / (timesteps / 1000).view(-1, 1, 1, 1)

    monkeypatch.setattr(fixed_grid, "predict", oracle)
    result = judge.evaluate(tiny.shadow_unet(hub_folder), FP32)
    assert result.loss < 1e-8
    assert result.r2 == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(result.prediction, task.decode(data), rtol=0, atol=1e-4)


def test_loss_is_the_mean_over_t_and_black_is_reported(task: ShadowTask, samples: list[Any], hub_folder: Path) -> None:
    result = grid(task, collate(samples)).evaluate(tiny.shadow_unet(hub_folder), FP32)
    assert list(result.loss_by_t) == [0.0, 0.5, 0.9]
    assert result.loss == pytest.approx(sum(result.loss_by_t.values()) / 3)
    numbers = result.numbers()
    assert numbers["black_soft_iou"] == 0.0
    shadows = torch.stack([sample.shadow for sample in samples])
    black = shadows.square().flatten(1).mean(dim=1).sqrt().mean()
    assert numbers["black_rmse"] == pytest.approx(float(black), rel=1e-5)
    assert {"loss", "r2", "soft_iou", "rmse", "zncc", "psnr", "ssim", "loss_t0", "loss_t0.5"} <= set(numbers)


def test_responses_are_of_one_condition_each(
    task: ShadowTask, samples: list[Any], hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that sees theta alone answers to theta alone."""
    unet = tiny.shadow_unet(hub_folder)
    assert all(value > 0 for value in grid(task, collate(samples)).evaluate(unet, FP32).responses.values())
    original = shadow_task.embed_light

    def theta_alone(light: Tensor) -> Tensor:
        return original(torch.cat([light[:, :1], torch.full_like(light[:, 1:], 5.0)], dim=1))

    monkeypatch.setattr(shadow_task, "embed_light", theta_alone)
    numbers = grid(task, collate(samples)).evaluate(unet, FP32).numbers()
    assert numbers["response_theta"] > 0.0 == numbers["response_phi"] == numbers["response_size"]


def test_a_light_sweep_changes_one_condition_of_one_sample(
    task: ShadowTask, samples: list[Any], hub_folder: Path
) -> None:
    """Where a value is the sample's own, the shadow is the one that the grid judges; the ends of phi are not one light
    drawn twice."""
    batch = collate(samples)
    batch = replace(batch, light=torch.tensor([[22.5, 144.0, 5.0]]).expand(len(batch), -1))
    unet = tiny.shadow_unet(hub_folder).train()
    torch.nn.init.normal_(unet.conv_out.weight)
    torch.nn.init.normal_(unet.conv_in.weight)  # the object is seen: whose it is shows
    judged = grid(task, batch)
    sweep = judged.sweep(unet, FP32)
    assert unet.training
    assert {name: [value for value, _ in row] for name, row in sweep.items()} == {
        "theta": [0.0, 11.25, 22.5, 33.75, 45.0],
        "phi": [0.0, 72.0, 144.0, 216.0, 288.0],
        "size": [2.0, 3.5, 5.0, 6.5, 8.0],
    }
    own = judged.evaluate(unet, FP32).prediction[0]
    for row in sweep.values():
        torch.testing.assert_close(row[2][1], own, rtol=1e-4, atol=1e-5)
        assert not torch.equal(row[0][1], row[4][1])
