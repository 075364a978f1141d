"""Faults that a few steps show, each next to a loop that looks like it and is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import Watch
from tests.diagnostics.contracts.loops import Loop, Net, train


def said(loop: Loop, body: Any = train, num_steps: int = 6) -> set[tuple[str, str]]:
    return {(one.rule, one.where) for one in loop.run(body, num_steps)}


# Models


class Routed(nn.Module):
    """One of its experts has a gradient; which one changes, or never does. All of them run."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))
        self.base, self.choose, self.index = nn.Linear(8, 4), choose, 0

    def forward(self, x: Tensor) -> Tensor:
        self.index += 1
        return self.base(x) + [expert(x) for expert in self.experts][self.choose(self.index)]


def test_experts_that_take_turns_are_silent_and_one_that_never_has_a_turn_is_not():
    assert said(Loop(Routed(lambda index: index % 2)), num_steps=8) == set()
    assert said(Loop(Routed(lambda index: 0))) == {("parameter-without-gradient", "experts.1.weight")}


def test_gradients_that_a_loop_takes_away_are_silent():
    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        loop.loss().backward()
        loop.model.last.weight.grad = None  # the last layer waits for an epoch
        loop.optimizer.step()

    assert said(Loop(), body) == set()


class UnderNoGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.tanh(self.first(x))
        return self.last(hidden)


def test_a_layer_under_no_grad():
    assert said(Loop(UnderNoGrad())) == {("parameter-without-gradient", "first.weight")}


@pytest.mark.parametrize("container", [list, tuple, lambda blocks: dict(enumerate(blocks))])
def test_layers_that_stand_in_a_plain_container(container: Any):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.last = container([nn.Linear(8, 8), nn.Linear(8, 8)]), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.blocks[1](torch.tanh(self.blocks[0](x))))

    model = Plain()
    assert said(Loop(model)) == {("parameter-without-optimizer", "blocks.0.weight")}
    held = [p for number in (0, 1) for p in model.blocks[number].parameters()]
    assert said(Loop(model, torch.optim.SGD([*model.parameters(), *held], lr=0.01))) == set()


class Fed(nn.Module):
    """Its second branch is given zeros."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.one, self.other, self.factor = nn.Linear(8, 4), nn.Linear(8, 4), factor

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full_like(x, self.factor)
        return self.one(x) + self.other(x.detach() * mask)


def test_a_layer_that_is_given_zeros():
    assert said(Loop(Fed(0.0))) == {("parameter-without-gradient", "other.weight")}
    assert said(Loop(Fed(0.5))) == set()


def test_a_parameter_that_is_rounded_in_full():
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(32, dtype=torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x).bfloat16()).float())

    small, large = (
        Loop(Normed(), lambda parameters, rate=rate: torch.optim.Adam(parameters, lr=rate)) for rate in (1e-4, 1e-2)
    )
    assert said(small) == {("half-precision-weights", "norm.weight")}
    assert said(large) == set()


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.body(x)))


def frozen(model: Backbone) -> Backbone:
    model.body.requires_grad_(False)
    return model


def test_statistics_of_a_frozen_backbone():
    assert said(Loop(frozen(Backbone()))) == {("frozen-parameter-moves", "body.1")}
    model = frozen(Backbone())
    model.body.eval()
    assert said(Loop(model)) == set()
    model = Backbone()
    model.body[1].requires_grad_(False)  # its scale alone is fixed
    assert said(Loop(model)) == set()
    loop = Loop(frozen(Backbone()))

    def follows(loop: Loop) -> None:
        train(loop)
        with torch.no_grad():
            for parameter in loop.model.body.parameters():
                parameter.mul_(0.999)

    assert said(loop, follows) == set()


def test_a_parameter_that_is_frozen_later_and_carried_on():
    loop = Loop(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9))

    def body(loop: Loop) -> None:
        if loop.index == 5:
            loop.model.first.requires_grad_(False)
        loop.optimizer.zero_grad(set_to_none=sets)
        loop.loss().backward()
        loop.optimizer.step()

    sets = False
    assert {(f.rule, f.where, f.step) for f in loop.run(body, 9)} == {("frozen-parameter-moves", "first.weight", 6)}
    sets = True
    assert said(Loop(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9)), body, 9) == set()


# Order


def judged(clears_first: bool) -> list[Any]:
    torch.manual_seed(0)
    maker, judge = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    makes, judges = torch.optim.Adam(maker.parameters()), torch.optim.Adam(judge.parameters())
    watch = Watch([maker, judge], [makes, judges], incidents=None)

    def body() -> None:
        made = maker(torch.randn(16, 4))
        if clears_first:
            judges.zero_grad()
        (judge(made.detach()).mean() - judge(torch.randn(16, 8)).mean()).backward()
        judges.step()
        if not clears_first:
            judges.zero_grad()
        makes.zero_grad()
        (-judge(made).mean()).backward()
        makes.step()

    for _ in range(6):
        watch.step(body)
    watch.detach()
    return watch.findings


def test_gradients_that_another_loss_left():
    assert judged(clears_first=True) == []
    (found,) = judged(clears_first=False)
    assert (found.rule, found.step, found.where) == ("gradients-not-cleared", 2, "optimizer 1.zero_grad")


def test_two_losses_and_two_rates_are_silent():
    """A shared body is stepped on the sum of what two heads' optimizers have stepped on."""
    body, one, other = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 1)
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-2) for part in (body, one, other)]
    watch = Watch([body, one, other], optimizers, incidents=None)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        for head, optimizer in zip((one, other), optimizers[1:], strict=True):
            head(body(torch.randn(4, 8))).square().mean().backward()
            optimizer.step()
        optimizers[0].step()

    for _ in range(6):
        watch.step(step)
    watch.detach()
    assert watch.findings == []


def test_heads_that_take_turns():
    def body(loop: Loop) -> None:
        head = loop.model["heads"][loop.index % 2]
        for part in (loop.model["body"], head) if clears_one else (loop.model,):
            part.zero_grad()
        F.cross_entropy(head(torch.relu(loop.model["body"](loop.x))), loop.y).backward()
        loop.optimizer.step()

    def model() -> nn.Module:
        return nn.ModuleDict({"body": nn.Linear(8, 8), "heads": nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])})

    clears_one = True
    assert {(f.rule, f.where, f.step) for f in Loop(model()).run(body)} == {("stale-gradients", "heads.1.weight", 2)}
    clears_one = False
    assert said(Loop(model()), body) == set()


# Rates


@pytest.mark.parametrize(("factor", "expected"), [(lambda step: step // 9, "warning"), (lambda step: step / 9, None)])
def test_rates_of_zero(factor: Any, expected: str | None):
    loop = Loop()
    schedule = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, factor)
    loop.between = lambda loop: schedule.step()
    found = loop.run(train)
    assert [(f.rule, f.step, f.severity) for f in found] == ([("learning-rate-zero", 2, "warning")] if expected else [])


def test_half_a_cosine_that_goes_on():
    for length, expected in ((4, [("scheduler-count", 5, "warning")]), (20, [])):
        loop = Loop()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, T_max=length)
        loop.between = lambda loop, schedule=schedule: schedule.step()
        assert [(f.rule, f.step, f.severity) for f in loop.run(train)] == expected
