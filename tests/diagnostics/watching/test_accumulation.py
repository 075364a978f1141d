"""A step that is one micro-batch: gradients and counters from before it come back, and the replay does the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.loops import Net
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")

NUM_MICRO = 3


class Micro:
    """A loop over micro-batches; `kind` is how it accumulates. The update may overflow (float16)."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.kind, self.dtype, self.index, self.spoil = kind, dtype, 0, ""
        self.model: Any = Net().to(dtype)
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=1e-2, eps=1e-4)
        self.schedule: Any = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=kind == "scaler")
        options = {"incidents": None} | options
        if kind == "accelerate":
            AcceleratorState._reset_state(True)
            GradientState._reset_state()
            self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=NUM_MICRO)
            self.model, self.optimizer, self.schedule = self.accelerator.prepare(
                self.model, self.optimizer, self.schedule
            )
        self.watch = Watch(self.model, self.optimizer, **options)

    def loss(self, batch: Tensor) -> Tensor:
        y = self.model(batch)
        if self.spoil == "loss":
            y = (y - 100).sqrt()
        loss = y.square().mean()
        if self.spoil == "backward":
            loss = loss + (y.float() * 0).abs().sqrt().sum()
        return loss

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.spoil == "update":
            self.model.last.weight.grad[0, 0] = (self.model.last.weight.grad[0, 0].abs() + 1).neg().sqrt()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def micro(self, batch: Tensor) -> Tensor:
        if self.kind == "accelerate":
            with self.accelerator.accumulate(self.model):
                loss = self.loss(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                if self.spoil == "update" and self.accelerator.sync_gradients:
                    self.model.last.weight.grad[0, 0] = (self.model.last.weight.grad[0, 0].abs() + 1).neg().sqrt()
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            return loss
        loss = self.loss(batch) / NUM_MICRO
        self.scaler.scale(loss).backward()
        if (self.index + 1) % NUM_MICRO == 0:
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.schedule.step()
                self.optimizer.zero_grad()
            else:
                self.update()
        return loss

    def state(self) -> dict[str, bytes]:
        state = state_of([self.model], getattr(self.optimizer, "optimizer", self.optimizer))
        state |= {f"{name}.grad": parameter.grad for name, parameter in self.model.named_parameters()}
        schedule = getattr(self.schedule, "scheduler", self.schedule)
        state |= {"schedule": [schedule.last_epoch, schedule._step_count, schedule.get_last_lr()]}
        if self.kind == "accelerate":
            state["accelerator"] = [self.accelerator.step, self.accelerator.sync_gradients]
        if self.scaler.is_enabled():
            state["scaler"] = [self.scaler.state_dict()]
        return bits_of(state) | {"random": bytes(torch.get_rng_state())}


def micro_batches(number: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(5, 4).to(dtype) for _ in range(number)]


KINDS = ("by hand", "accelerate", "scaler")


@pytest.mark.parametrize("kind", KINDS)
def test_accumulating_under_watch_changes_nothing(kind: str):
    def final(*, watched: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        loop = Micro(kind)
        if not watched:
            loop.watch.detach()
        for loop.index, batch in enumerate(micro_batches(2 * NUM_MICRO + 1)):
            loop.watch.step(lambda: loop.micro(batch), batch={"x": batch})  # noqa: B023
        return loop.state()

    assert final(watched=True) == final(watched=False)


@pytest.mark.parametrize("undo", ["auto", "always"])
@pytest.mark.parametrize("position", range(NUM_MICRO))
@pytest.mark.parametrize("kind", KINDS)
def test_a_trip_in_any_micro_batch_is_reproduced_and_undone(kind: str, position: int, undo: Any):
    loop = Micro(kind, undo=undo)
    faults = ["loss"] + ["backward"] * (kind != "scaler")  # there it is calibration
    faults += ["update"] * (position == NUM_MICRO - 1 and kind != "scaler")
    for fault in faults:
        torch.manual_seed(1)
        for loop.index, batch in enumerate(micro_batches(2 * NUM_MICRO)):
            if loop.index == NUM_MICRO + position:
                loop.spoil, before = fault, loop.state()
                with pytest.raises(NonFiniteError) as caught:
                    loop.watch.step(lambda: loop.micro(batch), batch={"x": batch})  # noqa: B023
                assert caught.value.verdict.reproducible, caught.value
                after = loop.state()
                assert not [name for name in before if before[name] != after[name]]
                assert ("so are the gradients" in str(caught.value)) is (position > 0)
                loop.spoil = ""
            loop.watch.step(lambda: loop.micro(batch), batch={"x": batch})  # noqa: B023


@pytest.mark.parametrize("kind", ["by hand", "accelerate"])
def test_a_run_goes_on_as_if_the_bad_micro_batch_had_not_been(kind: str):
    """The synchronisation boundary, too."""

    def final(*, bad_at: int | None) -> dict[str, bytes]:
        torch.manual_seed(0)
        loop, batches = Micro(kind), micro_batches(3 * NUM_MICRO)
        if bad_at is not None:
            batches.insert(bad_at, torch.full((5, 4), torch.nan))
        for batch in batches:
            try:
                loop.watch.step(lambda: loop.micro(batch), batch={"x": batch})  # noqa: B023
            except NonFiniteError:
                continue
            loop.index += 1
        return loop.state()

    expected = final(bad_at=None)
    for bad_at in (1, NUM_MICRO - 1, NUM_MICRO):
        assert final(bad_at=bad_at) == expected


def test_a_half_precision_update_at_the_boundary_is_repeated_and_undone():
    """Copies are kept here, so the replay steps the optimizer and the scheduler, too."""
    loop = Micro("accelerate", torch.float16)
    loop.optimizer.param_groups[0]["eps"] = 0.0
    for index, batch in enumerate(micro_batches(NUM_MICRO, torch.float16)):
        before = loop.state()
        if index < NUM_MICRO - 1:
            loop.watch.step(lambda: loop.micro(batch * 0))  # noqa: B023
            continue
        with pytest.raises(NonFiniteError) as caught:
            loop.watch.step(lambda: loop.micro(batch * 0))  # noqa: B023
        assert (caught.value.verdict.phase, caught.value.verdict.reproducible) == ("optimizer", True), caught.value
        assert loop.state() == before


def test_an_accelerator_is_found_where_the_step_names_it_or_taken():
    loop = Micro("accelerate")
    accelerator, model, optimizer = loop.accelerator, loop.model, loop.optimizer
    batch = torch.randn(5, 4)

    def step() -> None:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()

    for options in ({}, {"accelerator": accelerator}):
        watch = Watch(model, None if options else optimizer, incidents=None, **options)
        accelerator.step = 0
        watch.step(step)
        for form in ("step", "attempts"):
            with pytest.raises(NonFiniteError):
                spoiled(watch, step, accelerator, form)
            assert accelerator.step == 1, (options, form)
    with pytest.raises(TypeError, match="accelerator"):
        Watch(model, accelerator=model)


def spoiled(watch: Watch, step: Callable[[], None], accelerator: Any, form: str) -> None:
    def bad() -> Tensor:
        step()
        return torch.tensor(torch.nan)

    if form == "step":
        watch.step(bad)
    for attempt in watch.attempts():
        with attempt:
            attempt.result = bad()
    assert accelerator  # which this frame names


def test_what_a_step_drops_first_costs_no_copy():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, incidents=None)
    kept = []

    def step(*, drops: bool) -> None:
        if drops:
            optimizer.zero_grad()
        model(x).square().mean().backward()
        kept.append(watch._watched.running.undo.gradients.are_kept)  # type: ignore[union-attr]
        optimizer.step()

    for drops in (True, True, False):
        watch.step(lambda: step(drops=drops))  # noqa: B023
    assert kept == [False, False, True]


def test_gradients_that_were_bad_before_a_later_step():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, incidents=None)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()

    watch.step(step)
    model.weight.grad[0, 1] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        watch.step(step)
    assert (caught.value.verdict.phase, caught.value.verdict.parameter) == ("state", "weight.grad")
    assert torch.isnan(model.weight.grad[0, 1])


def test_an_exception_leaves_the_sum_as_it_was(tmp_path: Path):
    loop = Micro("by hand", incidents=tmp_path)
    batches = micro_batches(2)
    loop.watch.step(lambda: loop.micro(batches[0]))
    before = [parameter.grad.clone() for parameter in loop.model.parameters()]

    def raising() -> None:
        loop.micro(batches[1])
        int((loop.model(batches[1]) - 100).sqrt().mean())

    with pytest.raises(NonFiniteError):
        loop.watch.step(raising)
    assert all(torch.equal(a, b.grad) for a, b in zip(before, loop.model.parameters(), strict=True))
