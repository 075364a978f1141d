"""8-bit AdamW of bitsandbytes: its states are finite again after a step on NaN gradients, so that they show nothing.

What must stop is the gradient before the step and the weight after it.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch, all_finite
from diagnostics.watching.safety import states_are_sound
from tests.diagnostics.loops import BadGradient
from tests.diagnostics.states import bits_of, state_of

pytest.importorskip("bitsandbytes", reason="the extra low-memory is not installed")

ACCUMULATION, WIDTH = 4, 96


class Wide(nn.Module):
    """Two matrices above 4,096 elements, whose states take 8 bits, and small tensors, whose states do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fault: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fault(torch.tanh(self.first(x))))


class Foreign:
    """A loop that is not ours: bfloat16, four micro-batches a step, no clipping."""

    def __init__(self, precision: str, seed: int = 0) -> None:
        import bitsandbytes

        torch.manual_seed(seed)
        self.model = Wide()
        self.autocasts = precision == "autocast"
        if precision == "weights":
            self.model.to(torch.bfloat16)
        self.optimizer = bitsandbytes.optim.AdamW8bit(self.model.parameters(), lr=1e-3)
        self.dtype = torch.bfloat16 if precision == "weights" else torch.float32

    def batch(self, step: int) -> list[dict[str, Any]]:
        draws = torch.Generator().manual_seed(step)
        return [
            {
                "x": torch.randn(3, WIDTH, generator=draws).to(self.dtype),
                "y": torch.randn(3, WIDTH, generator=draws).to(self.dtype),
                "ids": [f"s{step}.{part}.{i}" for i in range(3)],
            }
            for part in range(ACCUMULATION)
        ]

    def loss(self, one: dict[str, Any]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocasts):
            predicted = self.model(one["x"])
        return (predicted - one["y"]).float().square().mean() / ACCUMULATION

    def step(self, batch: list[dict[str, Any]]) -> Tensor:
        self.optimizer.zero_grad()
        losses = []
        for one in batch:
            loss = self.loss(one)
            loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        return torch.stack(losses).sum()

    def bits(self) -> dict[str, bytes]:
        return bits_of(state_of([self.model], self.optimizer))


def spoiled_data(loop: Foreign, batch: list[dict[str, Any]]) -> None:
    batch[2]["x"][1, 5] = math.nan


def in_forward(loop: Foreign, batch: list[dict[str, Any]]) -> None:
    loop.model.fault = lambda x: (x - 2).sqrt()


def in_backward(loop: Foreign, batch: list[dict[str, Any]]) -> None:
    loop.model.fault = BadGradient.apply


def by_callable(watch: Watch, loop: Foreign, batch: list[dict[str, Any]], step: int) -> None:
    watch.step(lambda: loop.step(batch), batch=batch, step_index=step)


def by_attempts(watch: Watch, loop: Foreign, batch: list[dict[str, Any]], step: int) -> None:
    for attempt in watch.attempts(batch=batch, step_index=step):
        with attempt:
            loop.step(batch)


FORMS = {"step": by_callable, "attempts": by_attempts}
FAULTS = {"data": spoiled_data, "forward": in_forward, "backward": in_backward}


def test_the_states_are_finite_after_a_nan_gradient() -> None:
    """Why a scan of the states is not enough; where this fails, it is."""
    loop = Foreign("fp32")
    loop.step(loop.batch(0))
    for parameter in loop.model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    loop.optimizer.step()
    eight = [state for state in loop.optimizer.state.values() if state["state1"].dtype == torch.uint8]
    tensors = [value for state in eight for value in state.values() if isinstance(value, Tensor)]
    assert len(eight) == 2 and all_finite(tensors)
    assert not all_finite([loop.model.first.weight])


@pytest.mark.parametrize("precision", ["autocast", "weights"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_nan_gradient_stops_before_anything_is_kept(precision: str, form: str, fault: str, bad_step: int) -> None:
    loop = Foreign(precision)
    watch = Watch(loop.model, loop.optimizer, incidents=None)
    for step in range(bad_step):
        watch.step(lambda: loop.step(loop.batch(step)), step_index=step)  # noqa: B023
    before, batch = loop.bits(), loop.batch(bad_step)
    FAULTS[fault](loop, batch)
    with pytest.raises(NonFiniteError) as raised:
        FORMS[form](watch, loop, batch, bad_step)
    verdict = raised.value.verdict
    assert (verdict.phase, verdict.step, verdict.reproducible) == (fault, bad_step, True), verdict
    assert loop.bits() == before
    if fault == "data":
        assert (verdict.samples, verdict.parameter) == ((1,), "2.x"), verdict
    if fault == "forward":
        assert (verdict.op, verdict.exception) == ("sqrt", "invalid")
    if fault == "backward":
        assert verdict.exception == "divide_by_zero"


@pytest.mark.parametrize("bad_part", [1, 3])
def test_a_micro_batch_that_is_a_step_of_its_own_stops_likewise(bad_part: int) -> None:
    """The last one updates. Gradients of those before it stay, so that it can be left out."""
    loop = Foreign("autocast")
    watch = Watch(loop.model, loop.optimizer, incidents=None)

    def micro(one: dict[str, Any], part: int) -> None:
        loop.loss(one).backward()
        if part == ACCUMULATION - 1:
            loop.optimizer.step()
            loop.optimizer.zero_grad()

    for step in range(2):
        batch = loop.batch(step)
        for part, one in enumerate(batch):
            if (step, part) == (1, bad_part):
                break
            watch.step(lambda: micro(one, part), batch=one)  # noqa: B023
    before = loop.bits()
    gradients = [p.grad.clone() for p in loop.model.parameters() if p.grad is not None]
    one["x"][1, 5] = math.nan
    with pytest.raises(NonFiniteError) as raised:
        watch.step(lambda: micro(one, bad_part), batch=one)
    assert (raised.value.verdict.phase, raised.value.verdict.samples) == ("data", (1,))
    assert loop.bits() == before
    assert all(torch.equal(p.grad, g) for p, g in zip(loop.model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("precision", ["autocast", "weights"])
def test_a_loop_goes_on_as_if_the_bad_batch_had_not_been(precision: str) -> None:
    ends = []
    for trips in (False, True):
        loop = Foreign(precision)
        watch = Watch(loop.model, loop.optimizer, incidents=None)
        for step in range(4):
            if trips and step in (0, 2):
                batch = loop.batch(step)
                spoiled_data(loop, batch)
                with pytest.raises(NonFiniteError):
                    watch.step(lambda: loop.step(batch), batch=batch, step_index=step)  # noqa: B023
            watch.step(lambda: loop.step(loop.batch(step)), step_index=step)  # noqa: B023
        ends.append(loop.bits())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("target", ["first.weight", "first.bias"])
def test_a_kernel_that_spoils_a_weight_alone_is_undone(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and states are finite; what shows it is the weight after the step (bitsandbytes#152, #227)."""
    import bitsandbytes.functional as kernels

    loop = Foreign("autocast")
    watch = Watch(loop.model, loop.optimizer, incidents=None)
    watch.step(lambda: loop.step(loop.batch(0)), step_index=0)
    name = "optimizer_update_8bit_blockwise" if target.endswith("weight") else "optimizer_update_32bit"
    original, victim = getattr(kernels, name), loop.model.get_parameter(target)

    def faulty(optimizer_name: str, g: Tensor, p: Tensor, *rest: Any, **named: Any) -> None:
        original(optimizer_name, g, p, *rest, **named)
        if p is victim:
            p.data.view(-1)[7:8].div_(torch.zeros(1))

    monkeypatch.setattr(kernels, name, faulty)
    before = loop.bits()
    with pytest.raises(NonFiniteError) as raised:
        watch.step(lambda: loop.step(loop.batch(1)), step_index=1)
    assert (raised.value.verdict.phase, raised.value.verdict.parameter) == ("optimizer", target)
    assert loop.bits() == before and states_are_sound(loop.optimizer)
    monkeypatch.undo()
    watch.step(lambda: loop.step(loop.batch(1)), step_index=1)


def test_watching_changes_nothing() -> None:
    ends = []
    for watched in (False, True):
        loop = Foreign("autocast")
        watch = Watch(loop.model, loop.optimizer, incidents=None, statistics_every=2)
        for step in range(5):
            batch = loop.batch(step)
            if watched:
                watch.step(lambda: loop.step(batch), batch=batch, step_index=step)  # noqa: B023
            else:
                loop.step(batch)
        ends.append(loop.bits())
    assert ends[0] == ends[1]


def test_a_loaded_state_goes_on_bit_for_bit_under_the_watch() -> None:
    """By bitsandbytes' own state_dict: what was watched before is no part of the state."""
    ends = []
    for stops in (False, True):
        loop = Foreign("autocast")
        watch = Watch(loop.model, loop.optimizer, incidents=None)
        for step in range(6):
            if stops and step == 3:
                again = Foreign("autocast", seed=1)
                again.model.load_state_dict(loop.model.state_dict())
                again.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
                loop, watch = again, Watch(again.model, again.optimizer, incidents=None)
            watch.step(lambda: loop.step(loop.batch(step)), step_index=step)  # noqa: B023
        ends.append(loop.bits())
    assert ends[0] == ends[1]
