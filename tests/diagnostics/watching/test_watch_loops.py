"""Loops of many makes under a watch: several models or optimizers, none, accumulation, gradient scaling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.loops import Loop, Net, loop_of
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


def test_several_models(tmp_path: Path):
    """The generator's activations overflow in the discriminator's module; both are as they were."""
    generator, critic = Net(), nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    both = [*generator.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(both, lr=1e-2)
    watch = Watch([generator, critic], optimizer, incidents=tmp_path)
    scale = [1.0]

    def one() -> Tensor:
        optimizer.zero_grad()
        loss = torch.exp(critic(generator(torch.ones(2, 4)) * scale[0])).mean()
        loss.backward()
        optimizer.step()
        return loss

    watch.step(one)
    assert {"first", "last", "0", "2"} <= watch.layers.keys()
    before = bits_of(state_of([generator, critic], optimizer))
    scale[0] = 3e38
    with torch.no_grad():
        generator.last.weight.mul_(100)
    changed = bits_of(state_of([generator, critic], optimizer))
    assert changed != before
    with pytest.raises(NonFiniteError) as caught:
        watch.step(one)
    assert bits_of(state_of([generator, critic], optimizer)) == changed
    assert caught.value.verdict.exception == "overflow"


@pytest.mark.parametrize("rate", [1e-2, torch.inf])
def test_a_loop_without_an_optimizer(rate: float, tmp_path: Path):
    model = Net()
    watch = Watch(model, incidents=tmp_path)
    assert watch.undo_reason is not None
    batch = {"x": torch.randn(5, 4)}
    rates = [1e-2]

    def one() -> Tensor:
        loss = model(batch["x"]).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rates[-1] * gradient
        return loss.detach()

    start = bits_of(state_of([model]))
    watch.step(one, batch=batch)
    before = bits_of(state_of([model]))
    assert before != start
    rates.append(rate)
    if rate == 1e-2:
        watch.step(one, batch=batch)
        assert bits_of(state_of([model])) != before
        return
    with pytest.raises(NonFiniteError) as caught:
        watch.step(one, batch=batch)
    assert bits_of(state_of([model])) == before
    assert (caught.value.verdict.phase, caught.value.verdict.cause) == ("optimizer", "bad_scalar"), caught.value


@pytest.mark.parametrize("bad", [None, 1])
def test_gradient_accumulation_inside_the_step(bad: int | None, tmp_path: Path):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, incidents=tmp_path)
    batches = [{"x": torch.randn(5, 4), "ids": [f"m{m}s{i}" for i in range(5)]} for m in range(3)]
    if bad is not None:
        batches[bad]["x"][2] = torch.nan
    before = bits_of(state_of([model], optimizer))

    def one() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = model(batch["x"]).square().mean() / len(batches)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    if bad is None:
        watch.step(one, batch=batches)
        assert bits_of(state_of([model], optimizer)) != before
        return
    with pytest.raises(NonFiniteError) as caught:
        watch.step(one, batch=batches)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.parameter, verdict.samples) == ("data", "1.x", (2,))
    assert verdict.sample_ids == ("m1s2",)
    assert bits_of(state_of([model], optimizer)) == before


class SignDescent:
    """An optimizer that is not torch's: momentum of signs, kept where torch's keep theirs."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self.parameters, self.lr, self.state = list(parameters), lr, {}

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            state = self.state.setdefault(parameter, {"momentum": torch.zeros_like(parameter)})
            state["momentum"].lerp_(parameter.grad.sign(), 0.1)
            parameter.sub_(state["momentum"], alpha=self.lr)


@pytest.mark.parametrize("fault", ["forward", "optimizer"])
def test_an_optimizer_of_another_make_is_checked_before_and_after_it_steps(fault: str, tmp_path: Path):
    model = Net()
    loop = loop_of(model, tmp_path, SignDescent(model.parameters(), lr=1e-2))
    assert "SignDescent" in str(loop.watch.undo_reason)
    assert loop.run(2) is None
    assert "step" not in vars(loop.optimizer)
    if fault == "forward":
        model.middle = lambda x: (x - 2).sqrt()
    else:
        loop.optimizer.lr = float("inf")
    error = loop.run(1, first=2)
    assert error is not None
    assert error.verdict.phase == fault, error
    assert error.verdict.parameter == ("first.weight" if fault == "optimizer" else None)


@pytest.mark.parametrize("bad", [0, 1])
def test_two_optimizers_in_one_step(bad: int, tmp_path: Path):
    """As a GAN has them: when the second's gradients turn bad the first has stepped already, and is put back."""
    critic, generator = nn.Linear(3, 1), Net()
    optimizers = [torch.optim.Adam(one.parameters(), lr=1e-2) for one in (critic, generator)]
    watch = Watch([critic, generator], optimizers, incidents=tmp_path)
    assert "second optimizer" in str(watch.undo_reason)
    factors = [1.0, 1.0]

    def one() -> Tensor:
        x = torch.randn(4, 4)
        for model, optimizer, factor in zip((critic, generator), optimizers, factors, strict=True):
            optimizer.zero_grad()
            loss = (critic(generator(x)) * factor).square().mean().sqrt()
            loss.backward(inputs=list(model.parameters()))
            optimizer.step()
        return loss

    def state() -> dict[str, bytes]:
        return bits_of(state_of([critic], optimizers[0])) | bits_of(state_of([generator], optimizers[1]))

    watch.step(one)
    before = state()
    factors[bad] = 0.0  # the square root's gradient at zero
    with pytest.raises(NonFiniteError) as caught:
        watch.step(one)
    assert (caught.value.verdict.phase, caught.value.verdict.exception) == ("backward", "divide_by_zero")
    assert state() == before
    factors[bad] = 1.0
    watch.step(one)
    assert state() != before


def test_an_optimizer_that_accelerate_has_wrapped(tmp_path: Path):
    model = Net()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    watch = Watch(model, optimizer, incidents=tmp_path)
    assert watch.undo_reason is None
    batch = {"x": torch.randn(5, 4)}

    def one() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch["x"]).square().mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    watch.step(one, batch=batch)
    before = bits_of(state_of([model], optimizer))
    batch["x"][3, 2] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        watch.step(one, batch=batch)
    assert (caught.value.verdict.phase, caught.value.verdict.samples) == ("data", (3,))
    assert bits_of(state_of([model], optimizer)) == before


# Gradient scaling


def scaled_loop(folder: Path, scale: float, **options: Any) -> tuple[Loop, torch.amp.GradScaler, list[Any]]:
    model = Net()
    loop = loop_of(model, folder, torch.optim.SGD(model.parameters(), lr=1e-3), watch=options)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    broken: list[Any] = []

    def one(batch: dict[str, Any]) -> Tensor:
        loop.optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            predicted = loop.model(batch["x"])
        loss = loop.loss(predicted.float(), batch["y"]) * (broken[0] if broken else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        scaler.step(loop.optimizer)
        scaler.update()
        return loss.detach()

    loop.one = one  # type: ignore[method-assign]
    return loop, scaler, broken


def test_a_scaler_that_looks_for_its_scale_is_counted_not_raised(tmp_path: Path):
    loop, scaler, _ = scaled_loop(tmp_path, 2.0**24)
    before = bits_of(loop.state())
    assert loop.run(1) is None
    assert (loop.watch.num_skipped, loop.watch.skips_in_a_row) == (1, 1)
    assert bits_of(loop.state()) == before
    assert scaler.get_scale() == 2.0**23  # the scaler's own bookkeeping is its own
    assert loop.run(15, first=1) is None
    assert loop.watch.num_skipped >= 2
    assert loop.watch.skips_in_a_row == 0
    assert bits_of(loop.state()) != before
    assert not list(tmp_path.iterdir())


def test_a_scaler_that_collapses_is_a_finding(tmp_path: Path):
    loop, scaler, broken = scaled_loop(tmp_path, 2.0**4, max_consecutive_skips=4)
    assert loop.run(2) is None
    broken.append(1e35)  # no scale makes these gradients fit
    before = bits_of(loop.state())
    error = loop.run(10, first=2)
    assert error is not None
    assert error.verdict.step == 5
    assert error.verdict.phase in ("backward", "loss"), error
    assert error.verdict.exception == "overflow"
    assert bits_of(loop.state()) == before
    assert scaler.get_scale() == 2.0  # as before the step that tripped


def test_a_bad_loss_under_a_scaler_is_no_calibration(tmp_path: Path):
    loop, _, broken = scaled_loop(tmp_path, 2.0**4)
    assert loop.run(1) is None
    broken.append(torch.tensor(torch.nan))
    error = loop.run(1, first=1)
    assert error is not None
    assert error.verdict.phase in ("loss", "data")
    assert loop.watch.num_skipped == 0


@pytest.mark.parametrize("fault", ["forward", "optimizer"])
@pytest.mark.parametrize("kind", ["diffusers", "torch"])
def test_an_average_is_as_it_was(kind: str, fault: str, tmp_path: Path):
    """One that the watch was not told of, whatever part of the step is not finite: neither its values nor its count of
    updates know of the step or of its repetition."""
    model = Net()
    average = EMAModel(model.parameters(), decay=0.9) if kind == "diffusers" else AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, incidents=tmp_path)
    fine = {"x": torch.randn(5, 4), "scale": torch.ones(())}

    def state() -> list[Any]:
        if isinstance(average, AveragedModel):
            return [value.tolist() for value in average.state_dict().values()]
        counts = [average.optimization_step, average.cur_decay_value]
        return [*counts, *(shadow.tolist() for shadow in average.shadow_params)]

    def one(batch: dict[str, Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = (model(batch["x"]) * batch["scale"]).square().mean()
        loss.backward()
        optimizer.step()
        if isinstance(average, AveragedModel):
            average.update_parameters(model)
        else:
            average.step(model.parameters())
        return loss

    for _ in range(3):
        watch.step(lambda: one(fine), batch=fine)
    before = state()
    bad = {**fine, "scale": torch.tensor(torch.inf)} if fault == "forward" else fine
    if fault == "optimizer":
        optimizer.param_groups[0]["lr"] = torch.inf
    with pytest.raises(NonFiniteError):
        watch.step(lambda: one(bad), batch=bad)
    assert state() == before
