"""What a step writes to parameters other than by its optimizer: after that has stepped, or in a counter."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


class Copied(TorchDispatchMode):
    """Counts the elements that are cloned."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.num += out.numel() if func is torch.ops.aten.clone.default else 0
        return out


class Net(nn.Module):
    """Two layers, one of them frozen, and a counter that is held as a parameter (gojasper/LBM, lbm_model.py)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen = nn.Linear(32, 32), nn.Linear(32, 32).requires_grad_(False)
        self.num_iterations = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.count: Callable[[Tensor], Any] = lambda counter: None

    def forward(self, x: Tensor) -> Tensor:
        self.count(self.num_iterations)
        return self.frozen(self.first(x))


class Loop:
    """AdamW, whose step is known to stay finite, and what follows it."""

    def __init__(self, *, holds_all: bool = False, **options: Any) -> None:
        self.model = Net()
        held = [p for p in self.model.parameters() if holds_all or p.requires_grad]
        self.optimizer = torch.optim.AdamW(held, lr=1e-3)
        self.watch = Watch(self.model, self.optimizer, incidents=None, **options)
        self.x = torch.randn(4, 32)
        self.after: Callable[[], Any] = lambda: None

    def one(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model(self.x).square().mean()
        loss.backward()
        self.optimizer.step()
        self.after()
        return loss.detach()

    def state(self) -> dict[str, bytes]:
        return bits_of(state_of([self.model], self.optimizer))

    def fails(self) -> NonFiniteError:
        """The step trips, and everything is afterwards as before."""
        before = self.state()
        with pytest.raises(NonFiniteError) as caught:
            self.watch.step(self.one)
        assert caught.value.is_restored, caught.value
        assert self.state() == before
        return caught.value


# The optimizer's own parameters, after it has stepped


def in_place(weight: nn.Parameter, factor: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(factor)


def by_data(weight: nn.Parameter, factor: Tensor) -> None:
    """Leaves no trace in the version."""
    weight.data.mul_(factor)


def by_rebinding(weight: nn.Parameter, factor: Tensor) -> None:
    weight.data = weight.data * factor


def by_copying(weight: nn.Parameter, factor: Tensor) -> None:
    weight.detach().copy_(weight.detach() * factor)


def by_setting(weight: nn.Parameter, factor: Tensor) -> None:
    with torch.no_grad():
        weight.set_(weight * factor)


def foreach(weight: nn.Parameter, factor: Tensor) -> None:
    torch._foreach_mul_([weight.detach()], [factor])


def swapped(weight: nn.Parameter, factor: Tensor) -> None:
    """As an average is put in the weights' place."""
    weight.data, _ = weight.data.clone() * factor, weight.data


WRITES = [in_place, by_data, by_rebinding, by_copying, by_setting, foreach, swapped]
SEEN_LATER = [in_place, by_copying, foreach]  # in every step, by the parameter's version


@pytest.mark.parametrize("num_healthy", [0, 1, 3])
@pytest.mark.parametrize("write", WRITES)
def test_a_bad_write_after_the_optimizers_step_is_found_in_the_same_step_and_put_back(
    write: Callable[[nn.Parameter, Tensor], None], num_healthy: int
) -> None:
    loop, factor = Loop(), torch.ones(())
    loop.after = lambda: write(loop.model.first.weight, factor)
    for _ in range(num_healthy):
        loop.watch.step(loop.one)
    factor = torch.tensor(math.nan)
    loop.fails()
    factor = torch.ones(())
    before = loop.state()
    loop.watch.step(loop.one)
    assert loop.state() != before
    assert "after the optimizer has stepped" in str(loop.watch.undo_reason)


def test_renormalising_by_a_norm_of_zero_is_named() -> None:
    loop = Loop()
    weight = loop.model.first.weight
    scale = 1.0

    def renormalise() -> None:
        with torch.no_grad():
            weight.div_((weight * scale).norm(dim=1, keepdim=True))

    loop.after = renormalise
    loop.watch.step(loop.one)
    scale = 0.0
    verdict = loop.fails().verdict
    assert (verdict.exception, verdict.op, verdict.parameter) == ("divide_by_zero", "div", "first.weight"), verdict
    assert "test_late_writes.py" in str(verdict.source)


@pytest.mark.parametrize("write", SEEN_LATER)
def test_a_write_that_begins_late_is_found_in_its_step(write: Callable[[nn.Parameter, Tensor], None]) -> None:
    """Nobody could foresee it: that it cannot be put back is said, and from then on it can."""
    loop = Loop()
    for _ in range(3):
        loop.watch.step(loop.one)
    assert loop.watch.undo_reason is None
    loop.after = lambda: write(loop.model.first.weight, torch.tensor(math.nan))
    with pytest.raises(NonFiniteError, match="NOT as before") as caught:
        loop.watch.step(loop.one)
    assert not caught.value.is_restored
    assert "after the optimizer has stepped" in str(loop.watch.undo_reason)


def test_a_healthy_loop_is_copied_once_and_never_again() -> None:
    loop = Loop()
    loop.watch.step(loop.one)
    for _ in range(3):
        with Copied() as copied:
            loop.watch.step(loop.one)
        assert copied.num <= 10  # the counter
    assert loop.watch.undo_reason is None


def test_writes_are_left_alone_where_copies_are_forbidden() -> None:
    loop = Loop(undo="never")
    with Copied() as copied:
        loop.watch.step(loop.one)
    assert copied.num <= 10
    loop.after = lambda: in_place(loop.model.first.weight, torch.tensor(math.nan))
    with pytest.raises(NonFiniteError, match="NOT as before"):
        loop.watch.step(loop.one)


# What no optimizer trains


def count(counter: Tensor) -> None:
    counter += 1


def count_data(counter: Tensor) -> None:
    counter.data += 1


def count_rebound(counter: Tensor) -> None:
    counter.data = counter.data + 1


@pytest.mark.parametrize("how", [count, count_data, count_rebound])
@pytest.mark.parametrize("holds_all", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_counter_in_a_parameter_causes_a_copy_of_nothing_else(
    how: Callable[[Tensor], None], holds_all: bool, is_late: bool
) -> None:
    loop = Loop(holds_all=holds_all)
    if is_late:
        loop.after = lambda: how(loop.model.num_iterations)
    else:
        loop.model.count = how
    for _ in range(2):
        loop.watch.step(loop.one)
    with Copied() as copied:
        loop.watch.step(loop.one)
    assert copied.num <= 10
    assert loop.watch.undo_reason is None
    assert float(loop.model.num_iterations) == 3
    kept, loop.x = loop.x, torch.full_like(loop.x, math.nan)
    loop.fails()
    loop.x = kept
    loop.watch.step(loop.one)
    assert float(loop.model.num_iterations) == 4


def test_what_the_forward_writes_to_a_frozen_layer_is_copied_alone_and_found_before_the_optimizer_moves() -> None:
    """As momentum contrast moves its second encoder."""
    loop, rate = Loop(), 0.1
    with torch.no_grad():
        loop.model.frozen = copy.deepcopy(loop.model.first).requires_grad_(False)
    loop.watch.attach()

    def move(_: Tensor) -> None:
        loop.model.frozen.weight.lerp_(loop.model.first.weight.detach(), rate)

    loop.model.count = move
    for _ in range(2):
        loop.watch.step(loop.one)
    with Copied() as copied:
        loop.watch.step(loop.one)
    assert 32 * 32 <= copied.num <= 32 * 32 + 10
    assert loop.watch.undo_reason is None
    rate = math.nan
    loop.fails()
    rate = 0.1
    loop.watch.step(loop.one)
