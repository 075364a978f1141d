"""An optimizer that nobody knows, with states that no parameter has the shape or the dtype of."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch, explain
from tests.diagnostics.loops import BadGradient, Loop, Net, Switch, loop_of
from tests.diagnostics.states import bits_of
from tests.diagnostics.watching.eight_bits import Hoarder

pytestmark = pytest.mark.usefixtures("seeded")


def hoarding_loop(folder: Path, switch: Switch | None = None) -> Loop:
    model = Net(lambda x: BadGradient.apply(x) if switch is not None and switch.on else x)
    return loop_of(model, folder, Hoarder(model.parameters()))


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("fault", ["backward", "optimizer"])
def test_a_trip_leaves_every_state_as_it_was(fault: str, first: int, tmp_path: Path) -> None:
    """`Loop.run` compares all of them, nested ones and those of groups too, bit for bit."""
    switch = Switch()
    loop = hoarding_loop(tmp_path, switch)
    assert "Hoarder" in str(loop.watch.undo_reason)
    assert loop.run(first) is None
    before = [id(value) for state in loop.optimizer.state.values() for value in state.values()]
    group = loop.optimizer.param_groups[0]
    if fault == "backward":
        switch.on = True
    else:
        group["lr"] = math.nan
    error = loop.run(1, first=first)
    assert error is not None and error.is_restored
    assert error.verdict.phase == fault, error
    kept = [value for state in loop.optimizer.state.values() for value in state.values()]
    mutable = [old for old, value in zip(before, kept, strict=True) if not isinstance(value, (int, str))]
    assert set(mutable) <= {id(value) for value in kept}  # who holds one of them still holds the right one
    switch.on, group["lr"] = False, 1e-2
    assert loop.run(2, first=first + 1) is None


def test_the_loop_goes_on_as_if_the_bad_step_had_not_been(tmp_path: Path) -> None:
    def final(*, trips: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        switch = Switch()
        loop = hoarding_loop(tmp_path, switch)
        assert loop.run(2) is None
        randomness = torch.get_rng_state()
        if trips:
            switch.on = True
            assert loop.run(1, first=2) is not None
            switch.on = False
            torch.set_rng_state(randomness)
        assert loop.run(3, first=2) is None
        return bits_of(loop.state())

    assert final(trips=True) == final(trips=False)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    def final(*, watched: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        loop = hoarding_loop(tmp_path)
        if not watched:
            loop.watch.detach()
        assert loop.run(5) is None
        return bits_of(loop.state())

    assert final(watched=True) == final(watched=False)


PLACES: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "eight.scales": lambda state: state["eight"].scales,
    "nested.moments.1.1.deep": lambda state: state["nested"]["moments"][1][1]["deep"],
    "phase": lambda state: state["phase"],
    "narrow": lambda state: state["narrow"],
}


@pytest.mark.parametrize("name", PLACES)
def test_a_bad_value_deep_in_a_state_is_noticed_and_named(name: str, tmp_path: Path) -> None:
    """It reaches the weights much later, or never."""
    loop = hoarding_loop(tmp_path)
    assert loop.run(2) is None
    state = loop.optimizer.state[loop.model.first.weight]
    with torch.no_grad():
        PLACES[name](state).fill_(math.nan)
    error = loop.run(1, first=2)
    assert error is not None
    assert (error.verdict.phase, error.verdict.parameter) == ("state", f"first.weight.{name}"), error


def test_explain_works_with_states_that_no_operator_takes() -> None:
    model = nn.Linear(4, 2)
    optimizer = Hoarder(model.parameters())

    def step(factor: float) -> Tensor:
        optimizer.zero_grad()
        loss = (model(torch.ones(3, 4)) * factor).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    step(1.0)
    assert explain(lambda: step(1.0), model=model, optimizer=optimizer) is None
    verdict = explain(lambda: step(1e30), model=model, optimizer=optimizer)
    assert verdict is not None and (verdict.phase, verdict.exception) == ("loss", "overflow")


def test_a_rate_that_is_held_as_a_tensor_is_named() -> None:
    """torchao's optimizers hold theirs so, and torch's where a graph is captured."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3), foreach=False)
    watch = Watch(model, optimizer, incidents=None)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    watch.step(step)
    optimizer.param_groups[0]["lr"].fill_(math.nan)
    with pytest.raises(NonFiniteError) as caught:
        watch.step(step)
    verdict = caught.value.verdict
    assert (verdict.phase, verdict.parameter, verdict.module) == ("state", "param_groups[0].lr", None), verdict
    assert "schedule" in verdict.fix


@pytest.mark.parametrize("closure", [False, True])
def test_an_optimizer_runs_as_it_was_compiled_while_layers_are_measured(closure: bool) -> None:
    """Eager kernels round in another way, and torchao compiles its steps. A closure calls modules, which are hooked."""
    from torch._dynamo import eval_frame

    model, seen = nn.Linear(4, 2), []
    stances = {"forward": "", "step": ""}

    class Compiled(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            stances["step"] = eval_frame._stance.stance
            return super().step(closure)

    optimizer = Compiled(model.parameters(), lr=1e-3)
    watch = Watch(model, optimizer, incidents=None)

    def compute() -> Tensor:
        stances["forward"] = eval_frame._stance.stance
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        return loss

    def step() -> None:
        optimizer.zero_grad()
        if closure:
            optimizer.step(compute)
        else:
            compute()
            optimizer.step()
        seen.append(eval_frame._stance.stance)

    watch.step(step)
    assert watch.layers
    assert stances == {"forward": "force_eager", "step": "force_eager" if closure else "default"}
    assert seen == ["force_eager"] and eval_frame._stance.stance == "default"
    optimizer.param_groups[0]["lr"], stances["step"] = math.nan, ""
    with pytest.raises(NonFiniteError):
        watch.step(step)
    assert stances["step"] == "force_eager"  # in the repetition, where every operator is looked at
    assert eval_frame._stance.stance == "default"
