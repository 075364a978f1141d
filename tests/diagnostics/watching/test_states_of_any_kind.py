"""An optimizer that nobody knows, with states that no parameter has the shape or the dtype of."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import explain
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
