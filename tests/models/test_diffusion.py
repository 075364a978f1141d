"""Objectives on Stable Diffusion's schedule, next to diffusers' schedulers; coarse noise, next to its covariance."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from shadowlab.models import (
    EpsilonPrediction,
    MultiResolutionNoise,
    OneStep,
    RectifiedFlow,
    VPrediction,
    loss_where_known,
)
from shadowlab.models.multi_resolution import multi_resolution
from shadowlab.models.objective import ForwardSeen
from shadowlab.seeding import normal

OBJECTIVES = {"v_prediction": VPrediction(), "epsilon": EpsilonPrediction()}
SHAPE = (3, 4, 8, 8)
NOISE, DATA = normal(SHAPE, 0, "noise"), normal(SHAPE, 0, "data")


def kind(objective: Any) -> str:
    return type(objective).__name__


def scheduler_of(name: str) -> Any:
    return DDIMScheduler(**OBJECTIVES[name].schedule.scheduler_config(name))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_x_t_and_target_are_those_of_diffusers(name: str) -> None:
    objective, scheduler = OBJECTIVES[name], scheduler_of(name)
    t = torch.tensor([0.0, 0.35, 0.999])
    k = objective.timesteps(t).long()
    assert k.tolist() == [999, 649, 0]
    assert torch.allclose(objective.noised(NOISE, DATA, t), scheduler.add_noise(DATA, NOISE, k), atol=1e-4)
    wanted = scheduler.get_velocity(DATA, NOISE, k) if name == "v_prediction" else NOISE
    assert torch.allclose(objective.target(NOISE, DATA, t), wanted, atol=1e-4)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_generation_takes_the_trailing_steps_of_diffusers(name: str, steps: int) -> None:
    objective, scheduler = OBJECTIVES[name], scheduler_of(name)
    scheduler.set_timesteps(steps)
    told: list[int] = []

    def model(x: Tensor, k: float) -> Tensor:
        return torch.sin(2 * x + k / 300)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        told.append(int(objective.timesteps(t)[0]))
        return model(x, told[-1])

    made, x = objective.generate(predict, NOISE, steps), NOISE
    for k in scheduler.timesteps:
        x = scheduler.step(model(x, float(k)), k, x).prev_sample
    assert told == scheduler.timesteps.tolist() and told[0] == 999
    assert torch.allclose(made, x, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 7, 50])
@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), RectifiedFlow()], ids=lambda one: one.prediction)
def test_the_right_prediction_leads_to_the_data_in_any_number_of_steps(objective: Any, steps: int) -> None:
    start = objective.noised(NOISE, DATA, torch.zeros(len(NOISE)))
    made = objective.generate(lambda x, t: objective.target(NOISE, DATA, t), start, steps)
    assert torch.allclose(made, DATA, atol=2e-3)


def test_terminal_snr() -> None:
    assert VPrediction().schedule.terminal_snr == 0.0
    assert torch.equal(VPrediction().noised(NOISE, DATA, torch.zeros(len(NOISE))), NOISE)
    assert EpsilonPrediction().schedule.terminal_snr == pytest.approx(0.00468, rel=1e-2)


def seen_of(objective: Any, valid: Tensor | None = None, **changed: Tensor) -> ForwardSeen:
    t = torch.tensor([0.1, 0.5, 0.8])
    parts = {
        "x_t": objective.noised(NOISE, DATA, t),
        "timesteps": objective.timesteps(t),
        "prediction": DATA,
        "losses": objective.loss(DATA, NOISE, DATA, t),
    } | changed
    return ForwardSeen(**parts, noise=NOISE, data=DATA, weights_dtype=torch.float32, valid=valid)


@pytest.mark.parametrize(
    "objective",
    [VPrediction(), EpsilonPrediction(), MultiResolutionNoise(VPrediction(), 0.9)],
    ids=kind,
)
def test_a_wrong_forward_is_seen(objective: Any) -> None:
    right = objective.check_forward(seen_of(objective))
    assert all(check.passed for check in right) and any("terminal SNR" in check.name for check in right)
    swapped = objective.noised(DATA, NOISE, torch.tensor([0.1, 0.5, 0.8]))
    late = objective.timesteps(torch.tensor([0.2, 0.6, 0.9]))
    for changed in ({"x_t": swapped}, {"timesteps": late}, {"losses": torch.ones(3)}):
        assert not all(check.passed for check in objective.check_forward(seen_of(objective, **changed)))


@pytest.mark.parametrize("objective", [VPrediction(), RectifiedFlow()], ids=kind)
def test_the_loss_that_a_forward_gave_is_that_of_known_latents(objective: Any) -> None:
    t, valid = torch.tensor([0.1, 0.5, 0.8]), torch.ones(3, 1, 8, 8)
    valid[:, :, :5] = 0
    changed = {"losses": loss_where_known(objective, DATA, NOISE, DATA, t, valid)}
    assert all(check.passed for check in objective.check_forward(seen_of(objective, valid, **changed)))
    failed = {check.name for check in objective.check_forward(seen_of(objective, **changed)) if not check.passed}
    assert len(failed) == 1 and "loss" in failed.pop()


def test_a_schedule_that_leaks_the_target_is_seen() -> None:
    leaking = VPrediction()
    leaking.schedule = EpsilonPrediction().schedule
    assert not leaking.check_schedule()[0].passed
    blind = EpsilonPrediction()
    blind.schedule = VPrediction().schedule
    assert not blind.check_schedule()[0].passed


def test_coarse_noise_has_the_covariance_of_marigolds() -> None:
    """A picture of noise at each resolution, each 0.9 times as strong as the one before."""
    count, side, strength = 20_000, 4, 0.9
    found = multi_resolution(normal((count, 1, side, side), 0, "white"), torch.full((count,), strength)).flatten(1)
    wanted, variance = torch.eye(side * side), 1.0
    place = torch.arange(side * side)
    for level, size in ((1, 2), (2, 4)):
        block = place // side // size * side + place % side // size
        wanted = wanted + strength ** (2 * level) * (block[:, None] == block[None]).float()
        variance += strength ** (2 * level)
    assert torch.allclose(found.T @ found / count, wanted / variance, atol=0.04)


def test_coarse_noise_is_annealed_and_generation_starts_white() -> None:
    objective = MultiResolutionNoise(VPrediction(), 0.9)
    last = torch.full((3,), 0.9995)
    assert torch.allclose(objective.noise_at(NOISE, last), NOISE, atol=1e-5)
    assert not torch.allclose(objective.noise_at(NOISE, torch.zeros(3)), NOISE, atol=0.1)
    assert torch.equal(multi_resolution(NOISE, torch.zeros(3)), NOISE)
    given: list[Tensor] = []
    objective.generate(lambda x, t: given.append(x) or x, NOISE, 1)  # type: ignore[func-returns-value]
    assert torch.equal(given[0], NOISE)


def picture(latents: Tensor) -> Tensor:
    return torch.tanh(latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2))


@pytest.mark.parametrize("inner", [VPrediction(), RectifiedFlow()], ids=lambda one: one.prediction)
def test_one_step_is_judged_by_the_picture(inner: Any) -> None:
    objective = OneStep(inner, picture)
    t = torch.tensor([0.3, 0.6, 0.9])
    assert torch.equal(objective.noised(NOISE, DATA, t), NOISE)
    assert torch.equal(objective.timesteps(t), inner.timesteps(torch.zeros(3)))
    right = objective.target(NOISE, DATA, t)
    assert float(objective.loss(right, NOISE, DATA, t).max()) < 1e-6
    prediction = (right + 0.1).requires_grad_()
    losses = objective.loss(prediction, NOISE, DATA, t)
    other = inner.generate(lambda x, t: prediction, NOISE, 1)
    wanted = ((picture(other) - picture(DATA)).abs() / 2).flatten(1).mean(dim=1)
    assert torch.allclose(losses, wanted)
    losses.sum().backward()
    assert prediction.grad is not None and float(prediction.grad[:, :3].abs().min()) > 0
    seen = seen_of(objective, x_t=NOISE, timesteps=objective.timesteps(t))
    assert all(check.passed for check in objective.check_forward(seen))
    assert not objective.check_forward(seen_of(objective, x_t=DATA, timesteps=objective.timesteps(t)))[0].passed


@pytest.mark.parametrize("objective", [VPrediction(), RectifiedFlow(), OneStep(VPrediction(), picture)], ids=kind)
def test_the_loss_is_that_of_known_latents_alone(objective: Any) -> None:
    t = torch.tensor([0.0, 0.4, 0.8])
    valid = torch.ones(3, 1, 8, 8)
    valid[0, :, :, :6] = 0  # a quarter of the first is known
    right = objective.target(NOISE, DATA, t)
    prediction = (right + 0.5).requires_grad_()
    losses = loss_where_known(objective, prediction, NOISE, DATA, t, valid)
    plain = objective.loss(prediction, NOISE, DATA, t)
    assert torch.equal(losses[1:], plain[1:])
    if not isinstance(objective, OneStep):  # there latents near the border show in their neighbours' pixels
        assert losses[0].item() == pytest.approx(0.25)
    losses.sum().backward()
    assert prediction.grad is not None
    assert float(prediction.grad[0, :, :, :6].abs().max()) == 0 < float(prediction.grad[0, :3, :, 6:].abs().min())
    assert torch.equal(loss_where_known(objective, prediction, NOISE, DATA, t, None), plain)
