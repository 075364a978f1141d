"""An optimizer that steps outside of what is watched: the next step's verdict says what it did, and how to watch it."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.states import bits_of, state_of

pytestmark = pytest.mark.usefixtures("seeded")
Make = Callable[[Any], torch.optim.Optimizer]


class Loop:
    """`train_step` is watched and returns the loss after backward; the update follows outside, as in Trainer."""

    def __init__(
        self, make: Make, *, dtype: torch.dtype = torch.float32, is_given: bool = True, scale: float = 1.0
    ) -> None:
        self.model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1)).to(dtype)
        self.optimizer = make(self.model.parameters())
        self.watch = Watch(self.model, self.optimizer if is_given else None, incidents=None)
        self.x = torch.randn(4, 6).to(dtype)
        self.scale = scale
        self.before_update: Callable[[], Any] = lambda: None

    def train_step(self) -> Tensor:
        loss = self.scale * self.model(self.x).float().square().mean()
        loss.backward()
        return loss.detach()

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.watch.step(self.train_step)
            self.before_update()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def fails(self) -> NonFiniteError:
        """Within three steps, whose update is outside."""
        with pytest.raises(NonFiniteError) as caught:
            self.run(3)
        text = str(caught.value)
        assert "outside of the watched step" in text
        assert "for attempt in watch.attempts(batch=batch):" in text and "optimizer.step()" in text
        return caught.value


@pytest.mark.filterwarnings("ignore:eps")
@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda held: torch.optim.AdamW(held, foreach=False), "exp_avg_sq"),
        (lambda held: torch.optim.Adam(held, amsgrad=True), "max_exp_avg_sq"),
        (torch.optim.NAdam, "exp_avg_sq"),
        (torch.optim.RMSprop, "square_avg"),
        (torch.optim.Adagrad, "sum"),
    ],
)
def test_an_eps_that_half_precision_rounds_to_zero_is_named(make: Make, state: str, is_given: bool) -> None:
    """The watch finds the optimizer even where it was not given one: it holds the parameter."""
    verdict = Loop(make, dtype=torch.float16, is_given=is_given, scale=1e-4).fails().verdict
    assert (verdict.phase, verdict.cause, verdict.op) == ("optimizer", "underflow", "addcdiv"), verdict
    assert verdict.witness["operands"][state] == 0.0 and verdict.witness["operands"]["denominator"] == 0.0
    text = str(verdict)
    assert "is 0 in float16" in text and "eps=1e-4" in verdict.fix


def test_an_eps_of_zero_divides_nothing_by_nothing() -> None:
    verdict = Loop(lambda held: torch.optim.AdamW(held, eps=0.0), scale=0.0).fails().verdict
    assert (verdict.phase, verdict.exception, verdict.cause) == ("optimizer", "invalid", "out_of_domain")
    assert "above 0" in verdict.fix


def test_a_rate_that_is_not_a_number_is_named() -> None:
    loop = Loop(lambda held: torch.optim.SGD(held, lr=1e-3))
    loop.before_update = lambda: loop.optimizer.param_groups[0].update(lr=math.nan)
    verdict = loop.fails().verdict
    assert (verdict.phase, verdict.cause) == ("state", "bad_state")
    assert "its lr is nan" in str(verdict)


def test_a_gradient_that_was_spoilt_on_the_way_shows_in_a_moment() -> None:
    loop = Loop(torch.optim.AdamW)

    def spoil() -> None:
        weight = loop.model[0].weight
        assert isinstance(weight, nn.Parameter) and weight.grad is not None
        weight.grad[0, 0] = math.nan

    loop.before_update = spoil
    verdict = loop.fails().verdict
    assert verdict.phase == "state" and verdict.parameter == "0.weight"
    assert "the gradient that it was given was not finite" in str(verdict)


def test_a_moment_beyond_the_range_is_found_though_no_weight_shows_it() -> None:
    """The update is 0 from then on: the model learns no more, silently."""
    loop = Loop(torch.optim.AdamW)
    loop.run(2)
    loop.scale = 1e23
    loop.run(1)
    loop.scale = 1.0
    verdict = loop.fails().verdict
    assert (verdict.phase, verdict.parameter) == ("state", "0.weight.exp_avg_sq")
    assert "the square of a gradient that it was given is beyond float32" in str(verdict)


def test_where_the_states_show_nothing_the_verdict_says_that_it_steps_outside() -> None:
    loop = Loop(lambda held: torch.optim.SGD(held, lr=1e-3))
    loop.run(1)
    loop.before_update = lambda: [p.grad.fill_(math.inf) for p in loop.model.parameters() if p.grad is not None]
    assert "its states do not show why" in str(loop.fails())


def test_what_nobody_knows_to_be_an_optimizer_is_said_to_write_outside() -> None:
    model, x, rate = nn.Linear(6, 1), torch.randn(4, 6), 0.1
    watch = Watch(model, incidents=None)

    def step() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with pytest.raises(NonFiniteError, match="was written between two watched steps"):  # noqa: PT012
        for _ in range(3):
            watch.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=rate)
                    parameter.grad = None
            rate = math.nan


def test_a_healthy_loop_is_as_without_the_watch() -> None:
    def final(*, watched: bool) -> dict[str, bytes]:
        torch.manual_seed(0)
        loop = Loop(torch.optim.AdamW)
        if not watched:
            loop.watch.detach()
        loop.run(5)
        return bits_of(state_of([loop.model], loop.optimizer))

    assert final(watched=True) == final(watched=False)


def test_a_state_that_was_spoilt_between_steps_is_not_blamed_on_an_optimizer_that_steps_inside() -> None:
    loop = Loop(torch.optim.AdamW)

    def step() -> Tensor:
        loss = loop.train_step()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        return loss

    for _ in range(2):
        loop.watch.step(step)
    with torch.no_grad():
        loop.model[1].bias.fill_(math.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(NonFiniteError) as caught:
        loop.watch.step(step)
    assert (caught.value.verdict.phase, caught.value.verdict.parameter) == ("state", "1.bias")
    assert "outside" not in str(caught.value)


# The warning at construction


def test_an_eps_that_is_zero_in_half_precision_is_warned_of_once() -> None:
    model = nn.Linear(4, 2).half()
    with pytest.warns(RuntimeWarning, match="eps 1e-08 of AdamW is 0 in float16.*eps=1e-4") as warned:
        watch = Watch(model, torch.optim.AdamW(model.parameters()), incidents=None)
    assert len(warned) == 1 and warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.attach()


@pytest.mark.parametrize("is_adopted", [True, False])
def test_parameters_and_optimizers_that_come_later_are_warned_of(is_adopted: bool) -> None:
    model, late = nn.Linear(4, 2), nn.Linear(4, 2).half()
    optimizer = torch.optim.RMSprop(late.parameters() if is_adopted else model.parameters())
    watch = Watch([model, late], None if is_adopted else optimizer, incidents=None)
    if not is_adopted:
        optimizer.add_param_group({"params": list(late.parameters())})

    def step() -> None:
        (late(torch.randn(3, 4).half()).float().square().mean() * 100 + model(torch.randn(3, 4)).mean()).backward()
        for parameter in late.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    with pytest.warns(RuntimeWarning, match="eps 1e-08 of RMSprop is 0 in float16"):
        watch.step(step)


@pytest.mark.parametrize("options", [{"eps": 1e-4}, {"fused": True}])
@pytest.mark.filterwarnings("error")
def test_no_warning_where_eps_survives_or_the_kernel_computes_in_float32(options: dict[str, Any]) -> None:
    model = nn.Linear(4, 2).half()
    Watch(model, torch.optim.AdamW(model.parameters(), **options), incidents=None)
    wide = nn.Linear(4, 2).bfloat16()
    Watch(wide, torch.optim.AdamW(wide.parameters()), incidents=None)
