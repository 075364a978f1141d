"""A gradient scaler that hides a NaN is found by its skips; one that finds its scale is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


class Loop:
    """Half precision under a scaler. The loss is multiplied by `factor(step)`; where `is_bad(step)` holds, a masked
    division by zero makes the gradient NaN and leaves the loss finite."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model, self.x = nn.Linear(6, 4), torch.randn(3, 6)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.scaler: Any = torch.amp.GradScaler("cpu", **options)
        self.watch = Watch(self.model, self.optimizer, incidents=None, statistics_every=0)
        self.factor: Callable[[int], float] = lambda index: 1.0
        self.is_bad: Callable[[int], bool] = lambda index: False
        self.num_calls = 0

    def one(self, index: int) -> Tensor:
        self.num_calls += 1
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            y = self.model(self.x)
        length = torch.tensor([5.0, 1.0 if self.is_bad(index) else 3.0, 4.0])[:, None]
        loss = torch.where(length > 1, y.float().square() / (length - 1), 0.0).mean() * self.factor(index)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def run(self, num_steps: int, *, watched: bool = True) -> dict[str, bytes]:
        for index in range(num_steps):
            self.watch.step(lambda: self.one(index)) if watched else self.one(index)  # noqa: B023
        return bits_of(state_of([self.model], self.optimizer)) | {"scale": str(self.scaler.get_scale()).encode()}

    def fails(self, num_steps: int) -> NonFiniteError:
        with pytest.raises(NonFiniteError) as caught:
            self.run(num_steps)
        assert caught.value.is_restored
        return caught.value


@pytest.mark.parametrize("every", [2, 3, 10, 50])
def test_a_nan_that_a_scaler_hides_is_found_before_its_scale_has_collapsed(every: int) -> None:
    loop = Loop()
    loop.is_bad = lambda index: index % every == every - 1
    verdict = loop.fails(12 * every).verdict
    assert (verdict.phase, verdict.exception, verdict.op) == ("backward", "invalid", "div"), verdict
    assert loop.scaler.get_scale() >= 64


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_a_nan_is_found_where_the_scale_grows_again_in_between(interval: int) -> None:
    """Its scale shows nothing: it goes up and down for ever."""
    loop = Loop(growth_interval=interval, init_scale=8.0)
    loop.is_bad = lambda index: index % 3 == 2
    loop.factor = lambda index: 2.0**-12
    verdict = loop.fails(60).verdict
    assert (verdict.phase, verdict.op) == ("backward", "div")


@pytest.mark.parametrize(("start", "fitting"), [(2.0**16, 2.0**10), (2.0**16, 2.0**3), (2.0**8, 0.25)])
def test_a_search_for_the_scale_is_no_finding(start: float, fitting: float) -> None:
    """From 65536 down to what fits; the watch changes nothing and asks nothing."""

    def loop() -> Loop:
        made = Loop(init_scale=start)
        made.optimizer.param_groups[0]["lr"] = 1e-12
        made.factor = lambda index: 65504.0 / fitting
        return made

    watched, plain = loop(), loop()
    assert watched.run(30) == plain.run(30, watched=False)
    assert watched.num_calls == 30
    assert plain.scaler.get_scale() <= 8 * fitting and watched.watch.num_skipped > 3


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_a_scaler_that_tries_a_larger_scale_every_so_often_is_no_finding(interval: int) -> None:
    """It overflows as often; that is seen in the step itself, more and more seldom."""

    def loop() -> Loop:
        made = Loop(growth_interval=interval, init_scale=2.0**14)
        made.factor = lambda index: 50.0
        return made

    num = 60 * (interval + 1)
    watched, plain = loop(), loop()
    assert watched.run(num) == plain.run(num, watched=False)
    assert watched.watch.num_skipped > 30
    assert watched.num_calls - num <= 2 * 3  # two more runs at 16, 32 and 64 skips


def test_gradients_that_grow_for_a_while_are_no_finding() -> None:
    def loop() -> Loop:
        made = Loop()
        made.factor = lambda index: 2.0 ** (index // 4)
        return made

    watched, plain = loop(), loop()
    assert watched.run(56) == plain.run(56, watched=False)
    assert watched.watch.num_skipped >= 9


def test_a_step_that_cannot_be_repeated_is_asked_once_and_found_when_the_scale_has_collapsed() -> None:
    """It reads its batches from an iterator: its repetition sees the next one, and ends in an exception."""
    loop = Loop()
    loop.is_bad = lambda index: index % 3 == 2
    indices, is_traced, num_asked = iter(range(400)), False, 0

    def step() -> Tensor:
        nonlocal is_traced
        if is_traced:
            is_traced = False
            raise ValueError("this batch was read already")
        return loop.one(next(indices))

    def note() -> None:
        nonlocal is_traced, num_asked
        is_traced, num_asked = True, num_asked + 1

    loop.watch.on_trip = note
    with pytest.raises(NonFiniteError) as caught:  # noqa: PT012
        for _ in range(200):
            loop.watch.step(step)
    assert num_asked == 2  # and the last one was no question
    assert "its scale has fallen to" in str(caught.value)
    assert loop.scaler.get_scale() >= 2.0**-9


def test_the_scale_of_a_scaler_with_a_method_of_its_own_is_put_back() -> None:
    """FSDP's does not call the base class."""

    class OwnScaler(torch.amp.GradScaler):
        def scale(self, outputs: Any) -> Any:
            if self._scale is None:
                self._lazy_init_scale_growth_tracker(outputs.device)
            return outputs * self._scale

    assert "scale" in vars(ShardedGradScaler)
    loop = Loop()
    loop.scaler = OwnScaler("cpu", init_scale=4.0, growth_interval=1)
    loop.run(2)
    scale = loop.scaler.get_scale()
    loop.x[0, 0] = torch.nan
    loop.fails(1)
    assert loop.scaler.get_scale() == scale


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("is_boundary", [False, True])
def test_a_bad_loss_is_no_matter_of_scale_where_the_step_returns_none(bad: float, is_boundary: bool) -> None:
    """The scaler is given it before it scales: no skip that finds a scale, no micro-batch that may overflow."""
    loop = Loop()

    def run(index: int) -> None:
        loss = loop.model(loop.x).square().mean() * (bad if index == 2 else 1.0)
        loop.scaler.scale(loss).backward()
        if index % 2 == 1 or is_boundary:
            loop.scaler.step(loop.optimizer)
            loop.scaler.update()
            loop.optimizer.zero_grad()

    with pytest.raises(NonFiniteError) as caught:  # noqa: PT012
        for index in range(3):
            for attempt in loop.watch.attempts():
                with attempt:
                    run(index)
    assert index == 2
    assert caught.value.verdict.phase == "loss"
    assert caught.value.verdict.reproducible
