"""Optimizers, parameters, precision, rates and modes: each fault is named where it is."""

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diagnostics.contracts.loops import Loop, Net, first, train


def places(loop: Loop, body: Any = train, num_steps: int = 8) -> dict[str, tuple[int | None, str]]:
    return {found.rule: (found.step, found.where) for found in loop.run(body, num_steps)}


def test_a_layer_that_was_replaced_after_the_optimizer_was_built():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.last = nn.Linear(32, 4)
    found = places(Loop(model, optimizer))
    assert found["parameter-without-optimizer"] == (1, "last.weight")
    assert found["optimizer-holds-stranger"][0] == 1


def test_an_optimizer_of_a_copy():
    model = Net()
    optimizer = torch.optim.AdamW(copy.deepcopy(model).parameters(), lr=1e-2)
    assert places(Loop(model, optimizer))["optimizer-holds-stranger"] == (1, "first.weight")


def test_a_parameter_that_no_optimizer_holds_and_another_that_waits_for_its_optimizer():
    model = Net()
    optimizer = torch.optim.AdamW(model.first.parameters(), lr=1e-2)
    assert places(Loop(model, optimizer))["parameter-without-optimizer"] == (1, "last.weight")
    waiting = torch.optim.AdamW(model.last.parameters(), lr=1e-2)
    assert places(Loop(model, optimizer)) == {}
    assert waiting.param_groups


def test_two_optimizers_on_the_same_gradient():
    model = Net()
    both = [torch.optim.SGD(model.parameters(), lr=1e-2), torch.optim.AdamW(model.last.parameters(), lr=1e-2)]

    def body(loop: Loop) -> None:
        both[0].zero_grad()
        loop.loss().backward()
        both[0].step()
        both[1].step()

    assert places(Loop(model, both), body)["parameter-in-two-groups"] == (0, "last.weight")

    def alternating(loop: Loop) -> None:
        for optimizer in both:
            optimizer.zero_grad()
            loop.loss().backward()
            optimizer.step()

    assert places(Loop(model, both), alternating) == {}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_twice_in_one_group():
    model = Net()
    optimizer = torch.optim.SGD([*model.parameters(), model.first.bias], lr=1e-2)
    assert places(Loop(model, optimizer))["parameter-in-two-groups"] == (0, "first.bias")


class Cut(Net):
    """Its first layer is cut off from the loss."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).detach())


def test_a_layer_that_is_cut_off():
    loop = Loop(Cut())
    (found,) = loop.run(train)
    assert (found.rule, found.step, found.where) == ("parameter-without-gradient", 2, "first.weight")
    assert found.severity == "alarm" and "first.bias" in found.evidence


def test_a_frozen_parameter_that_moves_by_what_was_left_behind():
    loop = Loop(Net())
    loop.run(train, 1)
    loop.model.first.requires_grad_(False)

    def with_gradient_left(loop: Loop) -> None:
        loop.model.last.zero_grad()
        loop.loss().backward()
        loop.optimizer.step()

    found = {one.rule: one.where for one in loop.run(with_gradient_left, 3)}
    assert found["frozen-parameter-moves"] == "first.weight"


class Standing(torch.optim.SGD):
    """Forgets the first parameter."""

    def step(self, closure: Any = None) -> None:
        kept = self.param_groups[0]["params"][0].detach().clone()
        super().step(closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].copy_(kept)


def test_a_parameter_that_stands_still():
    loop = Loop(optimizer=lambda parameters: Standing(parameters, lr=0.1))
    assert places(loop) == {"parameter-stands-still": (1, "first.weight")}


@pytest.mark.parametrize(("rate", "is_lost"), [(1e-5, True), (3e-2, False)])
def test_weights_of_16_bits(rate: float, is_lost: bool):
    loop = Loop(Net().bfloat16(), lambda parameters: torch.optim.AdamW(parameters, lr=rate, eps=1e-6))
    loop.batch = lambda index: {"x": torch.randn(16, 8).bfloat16(), "y": torch.randint(0, 4, (16,))}
    assert places(loop) == ({"half-precision-weights": (1, "first.weight")} if is_lost else {})


def test_a_rate_that_is_zero_for_good():
    assert (
        places(Loop(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.0)))["learning-rate-zero"][0] == 4
    )


def scheduled(num_micro_batches: int) -> tuple[Loop, Any]:
    loop = Loop()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, 100)

    def body(loop: Loop) -> None:
        (loop.loss() / num_micro_batches).backward()
        if loop.index % num_micro_batches == num_micro_batches - 1:
            loop.optimizer.step()
            loop.optimizer.zero_grad()

    loop.between = lambda loop: schedule.step()
    return loop, body


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_schedule_that_follows_micro_batches():
    loop, body = scheduled(3)
    assert first(loop.run(body, 18)) == {"scheduler-count": 8}
    loop, body = scheduled(1)
    assert loop.run(body) == []


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("looked_into", [False, True])  # vars() makes a dictionary, which holds the optimizer then
def test_a_schedule_that_steps_before_its_optimizer(looked_into: bool):
    loop = Loop()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, 100)
    if looked_into:
        assert vars(schedule)["optimizer"] is loop.optimizer

    def body(loop: Loop) -> None:
        schedule.step()
        train(loop)

    (found,) = loop.run(body)
    assert (found.rule, found.severity, found.step) == ("scheduler-order", "warning", 0)


# Modes


def test_a_model_that_stays_in_evaluation_mode_after_validation():
    loop = Loop(Net(dropout=0.1))
    loop.between = lambda loop: loop.model.eval() if loop.index == 2 else None
    assert places(loop) == {"evaluation-mode-in-training": (3, "drop")}


def test_a_model_that_was_never_in_training_mode_is_a_warning():
    (found,) = Loop(Net(dropout=0.1).eval()).run(train)
    assert (found.rule, found.severity, found.step) == ("evaluation-mode-in-training", "warning", 1)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_validation_in_training_mode(wrap: Any):
    loop = Loop(Net(dropout=0.1))
    validated = wrap(loop.model)

    def validate(loop: Loop) -> None:
        with torch.no_grad():
            validated(loop.x)

    loop.between = validate
    assert places(loop) == {"training-mode-in-evaluation": (1, "drop")}


def test_a_model_is_copied_pickled_and_called_as_if_nobody_watched():
    gc.collect()  # watches of other tests
    before = Net.__call__
    loop = Loop()
    loop.run(train, 3)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in loop.model.modules())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(loop.model)))
    assert torch.equal(twin(loop.x), loop.model(loop.x))
    loop.watch.detach()
    assert Net.__call__ is before
    again = Loop()
    again.run(train, 1)
    del again
    gc.collect()
    assert Net.__call__ is before
