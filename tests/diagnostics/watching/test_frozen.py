"""What a step leaves alone costs no copy; what it writes to all the same is noticed and put back."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.states import bits_of, state_of
from tests.diagnostics.watching.eight_bits import Hoarder

pytestmark = pytest.mark.usefixtures("seeded")
LARGE = 300


class CopiedBytes(TorchDispatchMode):
    """Counts what is cloned, of the size of a large parameter or more."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default and out.numel() >= LARGE**2:
            self.num += out.numel() * out.element_size()
        return out


class Adapted(nn.Module):
    """A frozen layer with a small trained one next to it, and an average of that in a frozen module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(LARGE, LARGE).requires_grad_(False)
        self.adapter = nn.Linear(LARGE, LARGE, bias=False)
        self.average = copy.deepcopy(self.adapter).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


class Loop:
    def __init__(self, optimizer: Callable[[list[nn.Parameter]], Any], *, holds_all: bool, **options: Any) -> None:
        self.model = Adapted()
        held = list(self.model.parameters()) if holds_all else list(self.model.adapter.parameters())
        self.optimizer = optimizer(held)
        self.watch = Watch(self.model, self.optimizer, incidents=None, **options)
        self.average: Callable[[], None] = lambda: None
        self.x = torch.randn(2, LARGE)

    def one(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model(self.x).square().mean()
        loss.backward()
        self.optimizer.step()
        self.average()
        return loss.detach()

    def copied(self) -> float:
        """In multiples of a large parameter, by one step."""
        with CopiedBytes() as copied:
            self.watch.step(self.one)
        return copied.num / (4 * LARGE**2)


def lerp(model: Adapted, weight: float = 0.1) -> None:
    with torch.no_grad():
        model.average.weight.lerp_(model.adapter.weight, weight)


def by_data(model: Adapted, weight: float = 0.1) -> None:
    """The form that leaves no trace in the version of a parameter."""
    model.average.weight.data.mul_(1 - weight).add_(model.adapter.weight.data, alpha=weight)


def by_assignment(model: Adapted, weight: float = 0.1) -> None:
    average, current = model.average.weight.data, model.adapter.weight.data
    model.average.weight.data = average * (1 - weight) + current * weight


def foreach(model: Adapted, weight: float = 0.1) -> None:
    torch._foreach_lerp_([model.average.weight], [model.adapter.weight.detach()], weight)


AVERAGES = [lerp, foreach, by_data, by_assignment]


@pytest.mark.parametrize("holds_all", [False, True])
def test_frozen_parameters_are_not_copied(holds_all: bool) -> None:
    """Neither at the first step nor later, whether the optimizer holds them or not."""
    loop = Loop(Hoarder, holds_all=holds_all)
    assert "Hoarder" in str(loop.watch.undo_reason)
    for _ in range(3):
        trained = 1.0
        states = sum(t.numel() for t in _large_states(loop.optimizer)) / LARGE**2
        assert loop.copied() == pytest.approx(trained + states)


def _large_states(optimizer: Hoarder) -> list[Tensor]:
    """Those that are copied; codes count a quarter each as bytes."""
    found = []
    for state in optimizer.state.values():
        found += [state["nested"]["moments"][0]]
        found += [state["eight"].codes.view(torch.float32)]
    return found


@pytest.mark.parametrize("average", AVERAGES)
def test_a_healthy_average_in_a_frozen_module_is_copied_once_it_is_seen(average: Callable[[Adapted], None]) -> None:
    loop = Loop(lambda held: torch.optim.Adagrad(held, lr=1e-3), holds_all=False)
    loop.average = lambda: average(loop.model)
    first, second, third = (loop.copied() for _ in range(3))
    assert third == second == 3  # the adapter, its sum of squares, the average; never the base
    assert first <= 3


@pytest.mark.parametrize("bad_step", [0, 1, 3])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("holds_all", [False, True])
def test_a_bad_average_in_a_frozen_module_is_put_back(
    average: Callable[[Adapted, float], None], bad_step: int, holds_all: bool
) -> None:
    loop = Loop(Hoarder, holds_all=holds_all)
    weight = 0.1
    loop.average = lambda: average(loop.model, weight)
    for _ in range(bad_step):
        loop.watch.step(loop.one)
    weight = math.nan
    before = bits_of(state_of([loop.model], loop.optimizer))
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(loop.one)
    assert caught.value.is_restored, caught.value
    assert bits_of(state_of([loop.model], loop.optimizer)) == before
    weight = 0.1
    loop.watch.step(loop.one)
    assert bits_of(state_of([loop.model], loop.optimizer)) != before


@pytest.mark.parametrize("average", AVERAGES)
def test_copies_are_kept_where_operators_were_seen_to_write_outside_the_optimizer(
    average: Callable[[Adapted], None],
) -> None:
    """Next to an optimizer that is known to be sound; `.data` hides the write from all but the first step."""
    loop = Loop(lambda held: torch.optim.AdamW(held, lr=1e-3), holds_all=False)
    loop.average = lambda: average(loop.model)
    assert loop.watch.undo_reason is None
    loop.watch.step(loop.one)
    assert "other than its optimizer's" in str(loop.watch.undo_reason)


def test_a_first_bad_write_that_nobody_could_foresee_is_said() -> None:
    """An average that begins late, with NaN: noticed, and not claimed to be put back."""
    loop = Loop(Hoarder, holds_all=False)
    for _ in range(2):
        loop.watch.step(loop.one)
    loop.average = lambda: by_data(loop.model, math.nan)
    with pytest.raises(NonFiniteError, match="NOT as before the step") as caught:
        loop.watch.step(loop.one)
    assert not caught.value.is_restored


def test_an_average_that_begins_late_is_learned_where_statistics_are_measured() -> None:
    loop = Loop(Hoarder, holds_all=False, statistics_every=4)
    assert loop.watch.is_due(3)
    weight = 0.1
    for _ in range(4):
        loop.watch.step(loop.one)
        loop.average = lambda: by_data(loop.model, weight)
    weight = math.nan
    before = bits_of(state_of([loop.model], loop.optimizer))
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(loop.one)
    assert caught.value.is_restored and bits_of(state_of([loop.model], loop.optimizer)) == before


def test_an_encoder_that_is_moved_before_the_model_runs() -> None:
    """As momentum contrast does it, by assignment: a loss that is bad afterwards leaves it as it was."""
    loop = Loop(lambda held: torch.optim.AdamW(held, lr=1e-3), holds_all=False)
    inner = loop.one

    def one() -> Tensor:
        by_assignment(loop.model)
        return inner()

    loop.x[0, 0] = math.nan
    with torch.no_grad():
        loop.model.adapter.weight.add_(1)
    before = bits_of(state_of([loop.model], loop.optimizer))
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(one)
    assert caught.value.is_restored and bits_of(state_of([loop.model], loop.optimizer)) == before


@pytest.mark.parametrize("is_left_off", [True, False])
def test_parameters_whose_requires_grad_is_turned_off_and_on(is_left_off: bool) -> None:
    """A GAN's loop turns the critic off while the generator steps, and the other way round; both are copied."""
    critic, generator = nn.Linear(3, 1), nn.Linear(4, 3)
    optimizers = [Hoarder(one.parameters()) for one in (generator, critic)]
    watch = Watch([critic, generator], optimizers, incidents=None)
    factor = 1.0

    def one() -> None:
        for model, other, optimizer, scale in (
            (generator, critic, optimizers[0], 1.0),
            (critic, generator, optimizers[1], factor),
        ):
            model.requires_grad_(True)
            other.requires_grad_(False)
            optimizer.zero_grad()
            critic(generator(torch.randn(5, 4))).square().mean().backward()
            optimizer.param_groups[0]["lr"] = 1e-2 * scale
            optimizer.step()
        generator.requires_grad_(not is_left_off)

    def state() -> dict[str, bytes]:
        return bits_of(state_of([critic], optimizers[1])) | bits_of(state_of([generator], optimizers[0]))

    for bad in (1.0, math.nan, 1.0, math.nan):
        factor, before = bad, state()
        if math.isnan(bad):
            with pytest.raises(NonFiniteError) as caught:
                watch.step(one)
            assert caught.value.is_restored
            after = state()
            assert [name for name in before if before[name] != after[name] and "lr" not in name] == []
        else:
            watch.step(one)


def test_a_loop_that_updates_by_hand_keeps_its_average(tmp_path: Path) -> None:
    model = Adapted()
    watch, weight, x = Watch(model, incidents=tmp_path), 0.1, torch.randn(2, LARGE)

    def one() -> None:
        loss = model(x).square().mean()
        (gradient,) = torch.autograd.grad(loss, [model.adapter.weight])
        with torch.no_grad():
            model.adapter.weight -= 1e-3 * gradient
        by_data(model, weight)

    for bad in (math.nan, 0.1, math.nan):
        weight, before = bad, bits_of(state_of([model]))
        if math.isnan(bad):
            with pytest.raises(NonFiniteError) as caught:
                watch.step(one)
            assert caught.value.is_restored and bits_of(state_of([model])) == before
        else:
            watch.step(one)
            assert bits_of(state_of([model])) != before


def test_a_callers_own_mode_is_left_alone() -> None:
    """A guard that is put on inside it would be taken off in its place."""
    loop = Loop(Hoarder, holds_all=False)

    def one() -> float:
        with CopiedBytes() as copied:
            loop.one()
            torch.zeros(LARGE, LARGE).clone()
        torch.zeros(LARGE, LARGE).clone()
        return copied.num

    assert loop.watch.step(one) >= 4 * LARGE**2
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    assert not _get_current_dispatch_mode_stack()


def test_buffers_survive_the_step_in_which_an_optimizer_is_noticed() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(5, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, incidents=None)

    def one() -> None:
        model(x).square().mean().backward()
        model[0].weight.grad.mul_(math.nan)
        optimizer.step()

    before = bits_of(state_of([model]))
    with pytest.raises(NonFiniteError):
        watch.step(one)
    assert bits_of(state_of([model])) == before
