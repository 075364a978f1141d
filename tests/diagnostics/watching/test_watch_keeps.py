"""Ways in which a loop could keep something bad, or alarm without cause, that a simple loop does not show."""

import copy
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")


def tripped(
    watch: Watch, step: Callable[[], Any], model: nn.Module, optimizer: Any = None, **options: Any
) -> NonFiniteError:
    """The step trips, and everything is afterwards as before."""
    before = bits_of(state_of([model], optimizer))
    with pytest.raises(NonFiniteError) as caught:
        watch.step(step, **options)
    after = bits_of(state_of([model], optimizer))
    assert not [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert caught.value.is_restored and "as before the step" in str(caught.value)
    assert caught.value.__context__ is None  # its frames would hold the step's graph
    return caught.value


def plain(model: nn.Module, optimizer: Any, x: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


# Closures


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_closure_is_a_step(kind: Any, fault: str):
    model, x, offset = nn.Linear(4, 2), torch.randn(3, 4), [0.0]
    optimizer = kind(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, incidents=None)

    def closure() -> Tensor:
        optimizer.zero_grad()
        y = model(x)
        loss = (y - offset[0]).abs().sqrt().mean() if fault == "gradient" else (y + 100 - offset[0]).sqrt().mean()
        if fault == "gradient" and offset[0]:
            loss = (y * 0).abs().sqrt().sum()
        loss.backward()
        return loss

    watch.step(lambda: optimizer.step(closure))
    offset[0] = 200.0
    error = tripped(watch, lambda: optimizer.step(closure), model, optimizer, batch={"x": x})
    assert error.verdict.phase == ("loss" if fault == "loss" else "backward"), error
    assert error.verdict.samples == (0, 1, 2) or fault == "gradient"
    offset[0] = 0.0
    watch.step(lambda: optimizer.step(closure))


# What the optimizer makes of finite gradients


def test_averages_are_checked_and_undone():
    model, x, factor = nn.Linear(4, 2), torch.randn(3, 4), [1.0]
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, averages=list(average.parameters()), incidents=None)
    one = plain(model, optimizer, x)

    def step() -> Tensor:
        loss = one()
        for shown, parameter in zip(average.parameters(), model.parameters(), strict=True):
            shown.lerp_(parameter.detach(), 0.1).div_(factor[0])
        return loss

    watch.step(step)
    kept = bits_of(state_of([average]))
    factor[0] = 0.0
    assert tripped(watch, step, model, optimizer).verdict.phase == "ema"
    assert bits_of(state_of([average])) == kept


@pytest.mark.parametrize(
    ("key", "value"), [("weight_decay", math.nan), ("lr", math.inf), ("betas", (math.nan, 0.9)), ("eps", 0.0)]
)
def test_a_bad_number_of_the_optimizer(key: str, value: Any):
    model, x = nn.Linear(4, 2), torch.zeros(3, 4)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, incidents=None)
    assert watch.undo_reason is None
    optimizer.param_groups[0][key] = value
    assert str(value).split(",")[0].strip("()") in str(watch.undo_reason)
    assert tripped(watch, plain(model, optimizer, x), model, optimizer).verdict.phase == "optimizer"


def test_a_centred_variance_below_zero():
    torch.manual_seed(7)
    model, x = nn.Linear(8, 4), torch.randn(5, 8)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.0, centered=True, foreach=False)
    watch = Watch(model, optimizer, incidents=None)
    assert tripped(watch, plain(model, optimizer, x), model, optimizer).verdict.op == "sqrt"


def test_gradients_changed_after_clipping_are_looked_at_again():
    model, x, spoil = nn.Linear(4, 2), torch.randn(3, 4), [False]
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if spoil[0]:
            for parameter in model.parameters():
                parameter.grad.add_((parameter.detach() * 0 - 1).log())
        optimizer.step()

    watch.step(step)
    spoil[0] = True
    assert tripped(watch, step, model, optimizer).verdict.op == "log"


@pytest.mark.parametrize("every", [0, 50])
def test_parameters_that_an_optimizer_gets_later(every: int):
    model, x, weight = nn.Linear(4, 2), torch.randn(3, 4), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None, statistics_every=every)
    watch.step(plain(model, optimizer, x))
    optimizer.add_param_group({"params": [weight]})

    def step() -> None:
        optimizer.zero_grad()
        (model(x).square().mean() + weight.square().sum().sqrt()).backward()
        optimizer.step()

    assert tripped(watch, step, model, optimizer).verdict.path[-1] == "gradient param_groups[1][0]"
    assert torch.equal(weight.detach(), torch.zeros(2))


def test_an_optimizer_that_the_watch_was_not_given():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, incidents=None)
    step = plain(model, optimizer, x)
    watch.step(step)
    assert watch.undo_reason is None  # noticed, and known to be sound
    x[1] = torch.nan
    assert tripped(watch, step, model, optimizer, batch={"x": x}).verdict.samples == (1,)


def test_an_optimizer_that_steps_twice_is_reported_and_learned():
    model, x, bad = nn.Linear(4, 2), torch.randn(3, 4), [False]
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)

    def step() -> None:
        plain(model, optimizer, x)()
        optimizer.zero_grad()
        ((model(x) - 100).sqrt() if bad[0] else model(x)).mean().backward()
        optimizer.step()

    for _ in range(2):  # nobody knows what the first step of a watch does: all is copied
        bad[0] = True
        assert tripped(watch, step, model, optimizer).verdict.op == "sqrt"
        assert "several times" in str(watch.undo_reason)
        bad[0] = False
        watch.step(step)


def test_an_optimizer_that_begins_to_step_twice_is_reported():
    model, x, bad = nn.Linear(4, 2), torch.randn(3, 4), [False]
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)

    def step() -> None:
        plain(model, optimizer, x)()
        if bad[0]:
            optimizer.zero_grad()
            (model(x) - 100).sqrt().mean().backward()
            optimizer.step()

    watch.step(step)
    bad[0] = True
    with pytest.raises(NonFiniteError, match="NOT as before the step") as caught:
        watch.step(step)
    assert (caught.value.is_restored, caught.value.verdict.op) == (False, "sqrt")
    assert tripped(watch, step, model, optimizer).verdict.op == "sqrt"


def test_lists_in_an_optimizers_state_are_undone():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    watch, target = Watch(model, optimizer, incidents=None), [torch.zeros(2)]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - target[0]).square().mean()
        loss.backward()
        return loss

    watch.step(lambda: optimizer.step(closure))
    state = optimizer.state[model.weight]
    before = [len(state["old_dirs"]), bits_of({str(i): t for i, t in enumerate(state["old_dirs"])})]
    target[0] = torch.tensor([math.nan, 0.0])
    tripped(watch, lambda: optimizer.step(closure), model)
    state = optimizer.state[model.weight]
    assert [len(state["old_dirs"]), bits_of({str(i): t for i, t in enumerate(state["old_dirs"])})] == before


def test_bad_gradients_from_before_the_first_step():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.grad = torch.full_like(model.weight, math.nan)

    def step() -> None:
        model(x).square().mean().backward()  # accumulates
        optimizer.step()

    verdict = tripped(Watch(model, optimizer, incidents=None), step, model, optimizer).verdict
    assert (verdict.phase, verdict.parameter) == ("state", "weight.grad")


# Gradient scaling


def half_step(model: nn.Module, optimizer: Any, scaler: Any, x: Tensor, offset: float) -> Callable[[], Tensor]:
    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            y = model(x)
        loss = (y.float() - offset).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


def test_a_fused_optimizer_under_a_scaler_that_calibrates():
    model, x = nn.Linear(8, 4), torch.randn(16, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    watch, scaler = Watch(model, optimizer, incidents=None), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step = half_step(model, optimizer, scaler, x, 10.0)
    before = bits_of(state_of([model]))
    watch.step(step)
    assert watch.num_skipped == 1 and bits_of(state_of([model])) == before
    for _ in range(12):
        watch.step(step)
    assert watch.skips_in_a_row == 0 and bits_of(state_of([model])) != before


@pytest.mark.parametrize("given", [True, False])
def test_accumulating_under_a_scaler_is_no_skip(given: bool):
    model, x = nn.Linear(8, 4), torch.randn(16, 8)
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", init_scale=4.0)
    watch = Watch(model, optimizer if given else None, incidents=None)

    def step(last: bool) -> None:
        with torch.autocast("cpu", torch.float16):
            y = model(x)
        scaler.scale(y.float().square().mean() / 32).backward()
        if last:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    for i in range(64):
        watch.step(lambda: step((i + 1) % 32 == 0))  # noqa: B023
    assert (watch.num_skipped, watch.skips_in_a_row) == (0, 0)


# Buffers


class WithBuffer(nn.Module):
    """Buffers as attention masks, running extremes and averages have them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind, self.calls = nn.Linear(4, 4), kind, 0
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1) if kind == "mask" else None)
        self.register_buffer("lowest", torch.full((4,), torch.finfo(torch.float32).min if kind == "mask" else math.inf))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("phase", torch.zeros(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.linear(x)
        if self.kind == "cached" and self.mask is None:
            self.mask = torch.full((4, 4), -math.inf).triu(1)
        if self.kind == "reset" and self.calls % 3 == 0:
            self.lowest.fill_(math.inf)
        elif self.kind == "reset":
            self.lowest.copy_(torch.minimum(self.lowest, y.detach().amin(0)))
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)  # by assignment
        if self.kind == "complex" and self.calls > 1:
            self.phase.div_(0)
        return y - self.mean


@pytest.mark.parametrize("kind", ["mask", "cached", "reset"])
def test_meant_infinities_in_buffers_raise_nothing(kind: str):
    model, x = WithBuffer(kind), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None, statistics_every=2)
    for _ in range(8):
        watch.step(plain(model, optimizer, x))
    assert model.calls >= 8
    if kind != "reset":
        assert int(torch.isinf(model.mask).sum()) == 6


def test_a_nan_among_meant_infinities_that_does_not_come_again():
    """Neither dropped as meant nor repeated forever."""
    model, x, bad = WithBuffer("mask"), torch.randn(3, 4), [False]
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)

    def step() -> Tensor:
        if bad[0]:
            model.mask.data.numpy()[0, 0] = math.nan  # where no operator is seen
            bad[0] = False
        return plain(model, optimizer, x)()

    watch.step(step)
    bad[0] = True
    error = tripped(watch, step, model, optimizer)
    assert error.verdict.reproducible is False and "a buffer is not finite" in str(error)


def test_a_buffer_that_is_replaced_is_put_back():
    model, x = WithBuffer("mask"), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)
    for _ in range(2):
        watch.step(plain(model, optimizer, x))
    x[1, 1] = torch.nan
    verdict = tripped(watch, plain(model, optimizer, x), model, optimizer, batch={"x": x}).verdict
    assert (verdict.phase, verdict.parameter, verdict.samples) == ("data", "x", (1,))


@pytest.mark.parametrize("noted", [False, True])
def test_a_complex_buffer_is_watched(noted: bool):
    model, x = WithBuffer("complex"), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        if noted:
            watch.note(loss=loss.item(), grad_norm=1.0)
        optimizer.step()

    watch.step(step)
    model.phase += 1
    assert tripped(watch, step, model, optimizer).verdict.op == "div"


# The finding is not lost


def test_a_step_that_consumes_its_batch():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = iter([torch.full((3, 4), math.nan)])
    watch = Watch(model, optimizer, incidents=None)
    error = tripped(watch, lambda: plain(model, optimizer, next(batches))(), model, optimizer)
    assert error.verdict.phase == "loss"
    assert "the replay ended with StopIteration" in str(error) and "callable twice" in error.verdict.fix


def test_evidence_that_cannot_be_written(tmp_path: Path):
    model, x = nn.Linear(4, 2), torch.full((3, 4), math.nan)
    optimizer = torch.optim.AdamW(model.parameters())
    (tmp_path / "file").write_text("")
    watch = Watch(model, optimizer, incidents=tmp_path / "file")
    error = tripped(watch, plain(model, optimizer, x), model, optimizer)
    assert error.incident is None and "no evidence could be written" in str(error)


def test_complex_operands_are_reported(tmp_path: Path):
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.fft.rfft(self.linear(x))
            return torch.fft.irfft(z / (z.abs() * 0))

    model, x = Spectrum(), torch.randn(3, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=tmp_path)
    error = tripped(watch, plain(model, optimizer, x), model, optimizer)
    assert (error.verdict.op, error.verdict.phase) == ("div", "forward")
    assert error.incident is not None and (error.incident / "repro.py").is_file()


def test_a_watch_inside_its_own_step():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(model, optimizer, incidents=None)
    with pytest.raises(RuntimeError, match="inside a step of the same watch"):
        watch.step(lambda: watch.step(plain(model, optimizer, x)))
    watch.step(plain(model, optimizer, x))


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("model",), {}, "model: a torch.nn.Module or several, not str"),
        ((nn.Linear(1, 1), "adam"), {}, "optimizer: an object with a `step` method or several, not str"),
        ((nn.Linear(1, 1), torch.optim.Adam), {}, "not the class Adam"),
        ((nn.Linear(1, 1), list(nn.Linear(1, 1).parameters())), {}, "or several, not Parameter"),
        ((nn.Linear(1, 1),), {"undo": "sometimes"}, "undo: one of auto, always, never, not 'sometimes'"),
        ((nn.Linear(1, 1),), {"statistics_every": -1}, "statistics_every: 0 or more"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], options: dict[str, Any], text: str):
    with pytest.raises((TypeError, ValueError), match=text):
        Watch(*arguments, **options)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_what_was_kept_of_a_step_is_gone_with_it(kind: Any):
    """A copy of the weights in a cycle of references stays until Python looks for cycles: gigabytes for minutes."""
    model, x = nn.Linear(4, 2), torch.ones(3, 4)
    optimizer = kind(model.parameters(), lr=1e-3)
    watch = Watch(model, optimizer, incidents=None, statistics_every=2)

    step = plain(model, optimizer, x)
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            watch.step(step)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [
            type(one).__name__ for one in gc.garbage if isinstance(one, Tensor) or "watching" in type(one).__module__
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept
