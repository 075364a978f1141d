"""Writes to optimizer states by others are found, though the end of an ordinary step is not looked at."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diagnostics.watching.state_versions import StateVersions


def _loop(every: int = 1) -> tuple[StateVersions, dict[str, dict[str, Tensor | int]], Callable[[], bool]]:
    state: dict[str, dict[str, Tensor | int]] = {"w": {"moment": torch.zeros(2), "slow": torch.zeros(2), "count": 0}}
    versions, steps = StateVersions(), iter(range(1000))

    def step(*, moves: bool = True) -> bool:
        were_written = versions.were_written([state])
        if moves:
            state["w"]["moment"].mul_(0.9).add_(1.0)  # two writes
            state["w"]["count"] += 1
            if next(steps) % every == 0:
                state["w"]["slow"].add_(1.0)
        versions.note_end([state], int(moves))
        return were_written

    return versions, state, step


def test_only_others_writes_count() -> None:
    versions, state, step = _loop()
    assert [step() for _ in range(4)] == [True, False, False, False]  # the first is always looked at
    assert not step(moves=False) and not step() and not step(moves=False)  # accumulation, a skipped step
    state["w"]["moment"].fill_(float("nan"))
    assert step() and not step()
    state["w"]["moment"] = state["w"]["moment"].clone()  # a checkpoint puts others in their place
    assert step() and not step() and not step()
    versions.were_written([state])  # a step that does not end well, and is undone
    assert step() and not step()


@pytest.mark.parametrize("every", [2, 5])
def test_an_optimizer_that_writes_now_and_then_is_found_out(every: int) -> None:
    _, state, step = _loop(every)
    assert sum(step() for _ in range(60)) <= 5
    state["w"]["slow"].fill_(float("nan"))
    assert step()
