"""A watched loop stops before anything bad is kept, says what happened, and is otherwise the loop that it was."""

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Verdict, Watch
from tests.diagnostics.states import bits_of, state_of


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float16 and schedulers on a CPU
        yield


class Net(nn.Module):
    """Two layers around a function that a test puts in."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda x: x, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), norm or nn.Identity(), nn.Linear(6, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.norm(torch.tanh(self.first(x)))))


@dataclass
class Loop:
    """A small loop whose parts a test changes. `bad_at`: the step in which the fault happens."""

    model: nn.Module
    optimizer: Any
    watch: Watch
    prepare: Callable[["Loop", int], None] = lambda loop, index: None
    loss: Callable[[Tensor, Tensor], Tensor] = lambda predicted, target: (predicted - target).square().mean()
    after_backward: Callable[["Loop"], None] = lambda loop: None
    after_step: Callable[["Loop"], None] = lambda loop: None
    dtype: torch.dtype = torch.float32
    averages: tuple[Tensor, ...] = ()

    def batch(self) -> dict[str, Any]:
        x, y = torch.randn(5, 4), torch.randn(5, 3)
        return {"x": x.to(self.dtype), "y": y.to(self.dtype), "ids": [f"s{i}" for i in range(5)]}

    def one(self, batch: dict[str, Any]) -> Tensor:
        self.optimizer.zero_grad()
        x = batch["x"] + 0.01 * torch.randn_like(batch["x"])  # randomness inside the step
        loss = self.loss(self.model(x), batch["y"])
        loss.backward()
        self.after_backward(self)
        self.optimizer.step()
        self.after_step(self)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        averages = {f"average {i}": tensor for i, tensor in enumerate(self.averages)}
        return state_of([self.model], self.optimizer) | averages

    def random(self) -> tuple[Any, ...]:
        return bytes(torch.get_rng_state()), numpy.random.get_state()[1].tobytes()

    def run(self, num_steps: int, first: int = 0) -> NonFiniteError | None:
        """Asserts that a step that trips leaves everything as it was."""
        for index in range(first, first + num_steps):
            batch = self.batch()
            self.prepare(self, index)
            before, random = bits_of(self.state()), self.random()
            tripped: NonFiniteError | None = None
            try:
                self.watch.step(lambda: self.one(batch), batch=batch, step_index=index)  # noqa: B023
            except NonFiniteError as error:
                tripped = error
            if tripped is not None:
                after = bits_of(self.state())
                changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
                assert not changed, changed
                assert self.random() == random
                assert all(p.grad is None for p in self.model.parameters())
                assert (tripped.verdict.step, tripped.verdict.reproducible) == (index, True)
                assert tripped.exit_code == 1
                return tripped
        return None


def loop_of(
    model: nn.Module,
    folder: Path,
    optimizer: Any = None,
    averages: tuple[Tensor, ...] = (),
    watch: dict[str, Any] | None = None,
    **parts: Any,
) -> Loop:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"incidents": folder, "averages": averages, **(watch or {})}
    return Loop(model, optimizer, Watch(model, optimizer, **options), averages=averages, **parts)


# Nothing bad is kept, whatever the phase


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient / torch.zeros_like(gradient)


@dataclass
class Switch:
    """Turns a fault on; a mutable flag that the replay sees, too."""

    on: bool = False


def case_forward(folder: Path, switch: Switch) -> Loop:
    return loop_of(Net(lambda x: (x - 2).sqrt() if switch.on else x), folder)


def case_loss(folder: Path, switch: Switch) -> Loop:
    def loss(predicted: Tensor, target: Tensor) -> Tensor:
        error = (predicted - target).square().mean(1)
        return (error / (error * 0 if switch.on else 1)).mean()

    return loop_of(Net(), folder, loss=loss)


def case_backward(folder: Path, switch: Switch) -> Loop:
    return loop_of(Net(lambda x: BadGradient.apply(x) if switch.on else x), folder)


def case_clip(folder: Path, switch: Switch) -> Loop:
    def clip(loop: Loop) -> None:
        if switch.on:  # finite gradients whose norm is not
            for parameter in loop.model.parameters():
                parameter.grad.mul_(0).add_(3e38)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)

    return loop_of(Net(), folder, after_backward=clip)


def case_optimizer(folder: Path, switch: Switch, **options: Any) -> Loop:
    """AdamW on float16, where its eps of 1e-8 is zero."""
    model = Net().half()

    def choose_eps(loop: Loop, index: int) -> None:
        loop.optimizer.param_groups[0]["eps"] = 1e-8 if switch.on else 1e-2
        for state in loop.optimizer.state.values() if switch.on else ():
            state["exp_avg_sq"].zero_()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    return loop_of(model, folder, optimizer, prepare=choose_eps, dtype=torch.float16)


def case_optimizer_foreach(folder: Path, switch: Switch) -> Loop:
    return case_optimizer(folder, switch, foreach=True)


def case_optimizer_single(folder: Path, switch: Switch) -> Loop:
    return case_optimizer(folder, switch, foreach=False)


def case_average(folder: Path, switch: Switch) -> Loop:
    model = Net()
    averages = tuple(p.detach().half() for p in model.parameters())

    def update(loop: Loop) -> None:
        for average, parameter in zip(averages, loop.model.parameters(), strict=True):
            average.lerp_(parameter.detach().half() * (1e9 if switch.on else 1), 0.1)

    return loop_of(model, folder, averages=averages, after_step=update)


def case_buffer(folder: Path, switch: Switch) -> Loop:
    """The squares of batch normalisation's running variance overflow, in an activation that is finite."""
    model = Net(norm=Scaled(switch))
    return loop_of(model, folder)


class Scaled(nn.Module):
    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.norm, self.switch = nn.BatchNorm1d(6), switch

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * 1e25) if self.switch.on else self.norm(x)


CASES = {
    name.removeprefix("case_"): build
    for name, build in list(globals().items())
    if name.startswith("case_") and name != "case_optimizer"
}
PHASES = {"average": "ema", "buffer": "forward", "optimizer_foreach": "optimizer", "optimizer_single": "optimizer"}


@pytest.mark.parametrize("bad_step", [0, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_and_nothing_of_it_is_kept(name: str, bad_step: int, tmp_path: Path):
    switch = Switch()
    loop = CASES[name](tmp_path, switch)
    if bad_step:
        assert loop.run(bad_step) is None
    switch.on = True
    error = loop.run(1, first=bad_step)
    assert error is not None
    assert error.verdict.phase == PHASES.get(name, name), error
    assert f"of step {bad_step + 1}" in str(error)
    if "optimizer" in name:
        assert error.verdict.cause == "underflow", error
        assert error.verdict.parameter in dict(loop.model.named_parameters())

    # and the loop can go on from there
    switch.on = False
    assert loop.run(2, first=bad_step + 1) is None


def test_a_loop_goes_on_as_if_the_bad_batch_had_not_been(tmp_path: Path):
    def final(*, trips: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        switch = Switch()
        loop = case_forward(tmp_path, switch)
        loop.run(2)
        if trips:
            batches, kept = loop.batch, torch.get_rng_state()
            switch.on = True
            assert loop.run(1, first=2) is not None
            torch.set_rng_state(kept)
            assert batches
            switch.on = False
        loop.run(2, first=2)
        return bits_of(loop.state())

    assert final(trips=True) == final(trips=False)


def test_state_that_was_bad_before_the_first_step(tmp_path: Path):
    loop = loop_of(Net(), tmp_path)
    with torch.no_grad():
        loop.model.first.weight[1, 2] = torch.nan
    error = loop.run(1)
    assert error is not None
    assert (error.verdict.phase, error.verdict.parameter) == ("state", "first.weight")
    assert error.verdict.witness["index"] == [1, 2]


def test_a_bad_sample_is_named(tmp_path: Path):
    loop = loop_of(Net(), tmp_path)
    batch = loop.batch()
    batch["x"][3, 1] = torch.inf
    batch["x"][3, 2] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(lambda: loop.one(batch), batch=batch)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.parameter, verdict.samples, verdict.sample_ids) == ("data", "x", (3,), ("s3",))


# Watching changes nothing


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_weights_are_bit_identical_with_and_without(every: int, half: bool, tmp_path: Path):
    def final(*, watched: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        model = Net(norm=nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.3)))
        dtype = torch.bfloat16 if half else torch.float32
        loop = loop_of(model.to(dtype), tmp_path, watch={"statistics_every": every}, dtype=dtype)
        if not watched:
            loop.watch.detach()
        assert loop.run(6) is None
        return bits_of(loop.state()) | {"random": loop.random()[0]}

    assert final(watched=True) == final(watched=False)


def test_detached_it_only_calls_and_attached_it_watches_again(tmp_path: Path):
    switch = Switch()
    loop = case_forward(tmp_path, switch)
    loop.watch.detach()
    hooks = [m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in loop.model.modules()]
    assert not any(hooks)
    switch.on = True
    assert torch.isnan(loop.watch.step(lambda: loop.one(loop.batch())))  # as bad as without a watch
    loop = case_forward(tmp_path, switch)
    loop.watch.detach()
    loop.watch.attach()
    assert loop.run(1) is not None


def test_nothing_stays_patched_after_a_step(tmp_path: Path):
    def seams() -> tuple[Any, ...]:
        return torch.autograd.backward, torch.nn.utils.clip_grad._get_total_norm, torch.amp.GradScaler.scale

    before = seams()
    switch = Switch()
    loop = case_forward(tmp_path, switch)
    loop.run(1)
    assert seams() == before
    switch.on = True
    loop.run(1, first=1)
    assert seams() == before
    assert not loop.optimizer._optimizer_step_pre_hooks

    with pytest.raises(KeyError):
        loop.watch.step(lambda: {}["the loop's own error"])
    assert seams() == before


def test_statistics_are_measured_at_their_cadence(tmp_path: Path):
    loop = loop_of(Net(), tmp_path, watch={"statistics_every": 3})
    measured = []
    for index in range(7):
        loop.watch.layers = {}
        assert loop.run(1, first=index) is None
        measured.append(bool(loop.watch.layers))
    assert measured == [True, False, True, False, False, True, False]
    assert [loop.watch.is_due(i) for i in range(7)] == measured

    loop.run(1, first=8)
    assert {"first", "last"} <= loop.watch.layers.keys()
    never = loop_of(Net(), tmp_path, watch={"statistics_every": 0})
    never.run(2)
    assert never.watch.layers == {}


# Notes and loops of other makes


@pytest.mark.parametrize(("loss", "norm", "phase"), [(True, False, "forward"), (False, True, "backward")])
def test_a_loop_that_reads_its_loss_may_say_so(loss: bool, norm: bool, phase: str, tmp_path: Path):
    switch = Switch()
    loop = (case_forward if loss else case_backward)(tmp_path, switch)

    def one(batch: dict[str, Any]) -> float:
        loop.optimizer.zero_grad()
        value = loop.loss(loop.model(batch["x"]), batch["y"])
        value.backward()
        total = nn.utils.get_total_norm([p.grad for p in loop.model.parameters()])
        loop.watch.note(loss=value.item(), grad_norm=total.item())
        loop.optimizer.step()
        return value.item()

    assert isinstance(loop.watch.step(lambda: one(loop.batch())), float)
    switch.on = True
    before, batch = bits_of(loop.state()), loop.batch()
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(lambda: one(batch), batch=batch)
    assert caught.value.verdict.phase == phase
    assert caught.value.verdict.step == 1
    assert bits_of(loop.state()) == before

    loop.watch.detach()
    with pytest.raises(NonFiniteError, match="attach the watch"):
        loop.watch.step(lambda: one(batch), batch=batch)
    assert bits_of(loop.state()) == before


def test_a_loop_that_swallows_exceptions_does_not_swallow_the_trip(tmp_path: Path):
    switch = Switch(on=True)
    loop = case_forward(tmp_path, switch)

    def careless(batch: dict[str, Any]) -> Tensor | None:
        try:
            return loop.one(batch)
        except Exception:
            return None

    with pytest.raises(NonFiniteError):
        loop.watch.step(lambda: careless(loop.batch()))


def test_a_fault_that_does_not_come_again_is_said_to_be_so(tmp_path: Path):
    calls = []

    def flaky(x: Tensor) -> Tensor:
        calls.append(1)
        return x * torch.nan if len(calls) == 3 else x

    loop = loop_of(Net(flaky), tmp_path)
    assert loop.run(2) is None
    before, batch = bits_of(loop.state()), loop.batch()
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(lambda: loop.one(batch), batch=batch, step_index=2)
    assert len(calls) == 4
    assert caught.value.verdict.reproducible is False
    assert caught.value.verdict.step == 2
    assert "race" in caught.value.verdict.fix
    assert bits_of(loop.state()) == before
    assert caught.value.incident is not None and (caught.value.incident / "batch.pt").is_file()


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


# The incident


@pytest.mark.parametrize("name", [*CASES][::2])
def test_an_incident_is_complete_and_reproduces(name: str, tmp_path: Path):
    loop = CASES[name](tmp_path / "incidents", Switch(on=True))
    error = loop.run(1, first=41)
    assert error is not None and error.incident is not None
    folder = error.incident
    assert folder == tmp_path / "incidents" / "step-00000042"
    assert str(folder) in str(error)
    content = json.loads((folder / "verdict.json").read_text())
    assert Verdict.from_json(content).to_json() == error.verdict.to_json() == content
    assert (folder / "verdict.txt").read_text() == f"{error.verdict}\n"
    assert json.loads((folder / "environment.json").read_text())["torch"] == torch.__version__
    batch = torch.load(folder / "batch.pt", weights_only=True)
    assert batch["ids"] == [f"s{i}" for i in range(5)] and batch["x"].shape == (5, 4)
    randomness = torch.load(folder / "randomness.pt", weights_only=True)
    assert torch.equal(randomness["cpu"], torch.get_rng_state())

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(folder / "repro.py")]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not finite" in done.stdout


def test_a_second_incident_of_a_step_keeps_the_first(tmp_path: Path):
    loop = case_forward(tmp_path, Switch(on=True))
    folders = [error.incident for error in (loop.run(1), loop.run(1)) if error is not None]
    assert folders == [tmp_path / "step-00000001", tmp_path / "step-00000001-2"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    loop = case_forward(tmp_path, Switch(on=True))
    loop.watch.incidents = None
    error = loop.run(1)
    assert error is not None and error.incident is None
    assert not list(tmp_path.iterdir())


def test_undo_is_kept_only_where_it_is_needed(tmp_path: Path):
    model = Net()
    assert loop_of(model, tmp_path).watch.undo_reason is None
    assert "float16" in str(case_optimizer_single(tmp_path, Switch()).watch.undo_reason)
    assert "float16" in str(case_average(tmp_path, Switch()).watch.undo_reason)
    always = Watch(copy.deepcopy(model), torch.optim.SGD(model.parameters()), undo="always", incidents=None)
    assert always.undo_reason is not None
