"""DREAM: the model is asked first, and input and target both follow what it said."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shadowlab.models import Dream, EpsilonPrediction, VPrediction
from shadowlab.models.objective import ForwardSeen
from shadowlab.seeding import normal

SHAPE = (3, 4, 8, 8)
NOISE, DATA, SAID = (normal(SHAPE, 0, name) for name in ("noise", "data", "said"))
T = torch.tensor([0.05, 0.5, 0.97])


def diffusers_dream(power: float) -> tuple[Tensor, Tensor]:
    """As `diffusers.training_utils.compute_dream_and_update_latents` has it for epsilon, of a model that says SAID."""
    from types import SimpleNamespace

    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_dream_and_update_latents

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    k = EpsilonPrediction().timesteps(T).long()
    noisy: Any = scheduler.add_noise(DATA, NOISE, k)

    def unet(*_: Any) -> Any:
        return SimpleNamespace(sample=SAID.clone())

    found: Any = compute_dream_and_update_latents(
        unet,
        scheduler,
        k,
        NOISE.clone(),
        noisy.clone(),
        NOISE.clone(),
        SAID,
        power,  # type: ignore[arg-type]
    )
    return found


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_input_and_target_are_those_of_diffusers(power: float) -> None:
    objective = Dream(EpsilonPrediction(), power)
    noise = objective.rectified(lambda x, t: SAID, NOISE, DATA, T)
    noisy, target = diffusers_dream(power)
    assert torch.allclose(objective.noised(noise, DATA, T), noisy, atol=1e-4)
    assert torch.allclose(objective.target(noise, DATA, T), target, atol=1e-4)


def test_a_model_that_is_right_changes_nothing_and_v_is_rectified_too() -> None:
    for plain in (EpsilonPrediction(), VPrediction()):
        objective = Dream(plain, 1.0)
        right = objective.rectified(lambda x, t, of=plain: of.target(NOISE, DATA, t), NOISE, DATA, T)  # type: ignore[misc]
        assert torch.allclose(right, NOISE, atol=1e-4)
        wrong = objective.rectified(lambda x, t: SAID, NOISE, DATA, T)
        assert float((wrong - NOISE).abs().mean()) > 0.1


def seen(objective: Any, *, noise_of_target: Tensor) -> ForwardSeen:
    """A step that rectified its input and took the target of the given noise."""
    rectified = objective.rectified(lambda x, t: SAID, NOISE, DATA, T)
    losses = objective.loss(DATA, noise_of_target, DATA, T)
    x_t = objective.noised(rectified, DATA, T)
    return ForwardSeen(x_t, objective.timesteps(T), DATA, losses, NOISE, DATA, torch.float32)


@pytest.mark.parametrize("plain", [EpsilonPrediction(), VPrediction()])
def test_a_target_that_is_thrown_away_is_found(plain: Any) -> None:
    objective = Dream(plain, 1.0)
    rectified = objective.rectified(lambda x, t: SAID, NOISE, DATA, T)
    good = objective.check_forward(seen(objective, noise_of_target=rectified))
    assert all(check.passed for check in good)
    failed = [
        check.name for check in objective.check_forward(seen(objective, noise_of_target=NOISE)) if not check.passed
    ]
    assert failed == ["DREAM: the target is that of the rectified input"]


def test_an_input_that_is_not_rectified_is_found() -> None:
    objective = Dream(EpsilonPrediction(), 1.0)
    x_t, losses = objective.noised(NOISE, DATA, T), objective.loss(DATA, NOISE, DATA, T)
    found = objective.check_forward(ForwardSeen(x_t, objective.timesteps(T), DATA, losses, NOISE, DATA, torch.float32))
    assert [check.name for check in found if not check.passed] == ["DREAM: the input is rectified"]
