"""The flow against its closed forms and against diffusers' scheduler of the same flow."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from shadowlab.models.flow import integrate, interpolate, loss_per_sample, stratified_times, velocity
from shadowlab.seeding import normal


@pytest.fixture
def ends() -> tuple[Tensor, Tensor]:
    """noise, data: (3, 4, 2, 2)."""
    return normal((3, 4, 2, 2), 0, "noise"), 3.0 * normal((3, 4, 2, 2), 0, "data")


def test_interpolation_is_exact_at_both_ends(ends: tuple[Tensor, Tensor]) -> None:
    noise, data = ends
    assert torch.equal(interpolate(noise, data, torch.zeros(3)), noise)
    assert torch.equal(interpolate(noise, data, torch.ones(3)), data)


def test_every_sample_has_its_own_t(ends: tuple[Tensor, Tensor]) -> None:
    noise, data = ends
    x = interpolate(noise, data, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(x[0], noise[0])
    assert torch.allclose(x[1], (noise[1] + data[1]) / 2)
    assert torch.equal(x[2], data[2])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # forward mode loads torch's own scripts
def test_velocity_is_the_derivative_of_the_interpolation(ends: tuple[Tensor, Tensor]) -> None:
    noise, data = (end.double() for end in ends)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    _, derivative = torch.func.jvp(lambda t: interpolate(noise, data, t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(velocity(noise, data), derivative, rtol=0, atol=1e-14)


def test_one_step_is_noise_plus_the_velocity_at_noise(ends: tuple[Tensor, Tensor]) -> None:
    noise, _ = ends
    seen: list[Tensor] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.extend((x, t))
        return 2.0 * x

    assert torch.equal(integrate(predict, noise, 1), 3.0 * noise)
    assert torch.equal(seen[0], noise)
    assert torch.equal(seen[1], torch.zeros(3))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20])
def test_euler_with_the_true_velocity_ends_at_the_data(ends: tuple[Tensor, Tensor], num_steps: int) -> None:
    noise, data = (end.double() for end in ends)
    reached = integrate(lambda x, t: velocity(noise, data), noise, num_steps)
    torch.testing.assert_close(reached, data, rtol=0, atol=1e-13)


def test_no_steps_is_an_error(ends: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        integrate(lambda x, t: x, ends[0], 0)


@pytest.mark.parametrize("num_steps", [1, 4, 20])
def test_agrees_with_diffusers_step_by_step(num_steps: int) -> None:
    """sigma = 1 - t, opposite sign; a velocity that depends on x and t tells every wrong t apart."""
    ours: list[Tensor] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + t.view(-1, 1).to(x.dtype)

    def watched(x: Tensor, t: Tensor) -> Tensor:
        ours.append(x)
        return predict(x, t)

    noise = normal((2, 5), 0, "noise")
    ours.append(integrate(watched, noise, num_steps))

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    sigmas = [1.0 - step / num_steps for step in range(num_steps)]
    scheduler.set_timesteps(sigmas=sigmas)
    theirs = [noise]
    for timestep in scheduler.timesteps:
        t = (1.0 - timestep / scheduler.config.num_train_timesteps).expand(2)
        theirs.append(scheduler.step(-predict(theirs[-1], t), timestep, theirs[-1]).prev_sample)
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=0, atol=1e-5)


def test_loss_is_kept_per_sample_in_float32() -> None:
    predicted = torch.zeros(3, 4, 2, 2, dtype=torch.float16)
    target = torch.tensor([0.0, 2.0, 300.0], dtype=torch.float16).view(3, 1, 1, 1).expand(3, 4, 2, 2)
    loss = loss_per_sample(predicted, target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [0.0, 4.0, 90_000.0]  # beyond float16's 65504


@pytest.mark.parametrize("count", [1, 3, 8])
def test_stratified_times_are_evenly_spread(count: int) -> None:
    t = stratified_times(count, 0.3).double().sort().values
    gaps = torch.cat([t[1:] - t[:-1], t[:1] + 1 - t[-1:]])
    torch.testing.assert_close(gaps, torch.full((count,), 1 / count, dtype=torch.float64), rtol=0, atol=1e-6)


def test_every_place_of_the_batch_has_uniform_times() -> None:
    """Over many offsets each single t is uniform: mean 1/2, variance 1/12, within 4 sigma."""
    count, draws = 4, 4000
    offsets = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    t = torch.stack([stratified_times(count, offset) for offset in offsets]).double()
    mean_sigma = math.sqrt(1 / 12 / draws)
    variance_sigma = math.sqrt((1 / 80 - 1 / 144) / draws)
    assert ((t.mean(dim=0) - 0.5).abs() < 4 * mean_sigma).all()
    assert ((t.var(dim=0) - 1 / 12).abs() < 4 * variance_sigma).all()


def test_a_batch_in_pieces_has_the_times_of_the_whole() -> None:
    whole = stratified_times(6, 0.77)
    pieces = [stratified_times(2, 0.77, position=position, stride=6) for position in (0, 2, 4)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize(("share", "zeros"), [(0.25, 8), (0.5, 16), (1.0, 32)])
def test_a_share_of_the_samples_trains_from_pure_noise(share: float, zeros: int) -> None:
    """The others stay evenly spread over [0, 1), and a batch in pieces has the times of the whole."""
    t = stratified_times(32, 0.3, noise_share=share)
    assert int((t == 0).sum()) == zeros
    rest = t[t > 0].double().sort().values
    torch.testing.assert_close(
        rest.diff(), torch.full((max(31 - zeros, 0),), 1 / (32 - zeros or 1), dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert ((t >= 0) & (t < 1)).all()
    pieces = [stratified_times(8, 0.3, position=p, stride=32, noise_share=share) for p in (0, 8, 16, 24)]
    assert torch.equal(torch.cat(pieces), t)
    assert torch.equal(stratified_times(32, 0.3, noise_share=0.0), stratified_times(32, 0.3))


@pytest.mark.parametrize("offset", [0.0, 0.5, 1 - 2**-53, 1 - 2**-25, 0.999999999])
def test_times_stay_below_one(offset: float) -> None:
    t = stratified_times(7, offset)
    assert t.dtype == torch.float32
    assert ((t >= 0) & (t < 1)).all()
