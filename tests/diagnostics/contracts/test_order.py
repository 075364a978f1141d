"""Clearing, backward, clipping, scaling and stepping in their order: each fault is named, each twin is silent."""

from typing import Any

import pytest
import torch
from torch import nn

from diagnostics import Watch
from tests.diagnostics.contracts.loops import Loop, Net, first, train


def never_clears(loop: Loop) -> None:
    loop.loss().backward()
    loop.optimizer.step()


def clears_another_model(loop: Loop) -> None:
    Net().zero_grad()
    never_clears(loop)


def clears_before_the_step(loop: Loop) -> None:
    loop.loss().backward()
    loop.optimizer.zero_grad()
    loop.optimizer.step()


def clears_to_zeros_before_the_step(loop: Loop) -> None:
    loop.loss().backward()
    loop.model.zero_grad(set_to_none=False)
    loop.optimizer.step()


def drops_by_hand_before_the_step(loop: Loop) -> None:
    loop.loss().backward()
    for parameter in loop.model.parameters():
        parameter.grad = None
    loop.optimizer.step()


def never_steps(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    loop.loss().backward()


def differentiates_nothing(loop: Loop) -> None:
    loop.loss()


def steps_without_backward(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    loop.loss()
    loop.optimizer.step()


def differentiates_a_copy(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    torch.tensor(loop.loss().item(), requires_grad=True).backward()
    loop.optimizer.step()


def steps_on_one_gradient(loop: Loop) -> None:
    if loop.index == 0:
        loop.loss().backward()
    loop.optimizer.step()


def clears_each_micro_batch(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    (loop.loss() / 4).backward()
    if loop.index % 4 == 3:
        loop.optimizer.step()


def clips_after_the_step(loop: Loop) -> None:
    train(loop)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)


FAULTS = {
    never_clears: ("gradients-not-cleared", 1),
    clears_another_model: ("gradients-not-cleared", 1),
    clears_before_the_step: ("gradients-cleared-too-early", 0),
    clears_to_zeros_before_the_step: ("gradients-cleared-too-early", 0),
    drops_by_hand_before_the_step: ("gradients-cleared-too-early", 0),
    never_steps: ("no-optimizer-step", 2),
    differentiates_nothing: ("no-optimizer-step", 2),
    steps_without_backward: ("loss-without-gradient", 1),
    differentiates_a_copy: ("loss-without-gradient", 1),
    steps_on_one_gradient: ("stale-gradients", 2),
    clears_each_micro_batch: ("accumulation-count", 3),
    clips_after_the_step: ("clipping-after-step", 0),
}


@pytest.mark.parametrize("body", FAULTS, ids=lambda body: body.__name__)
def test_a_wrong_order_is_named(body):
    rule, step = FAULTS[body]
    assert first(Loop().run(body)).get(rule) == step


def drops_by_hand(loop: Loop) -> None:
    for parameter in loop.model.parameters():
        parameter.grad = None
    loop.loss().backward()
    loop.optimizer.step()


def clears_to_zeros(loop: Loop) -> None:
    loop.optimizer.zero_grad(set_to_none=False)
    loop.loss().backward()
    loop.optimizer.step()


def clears_data(loop: Loop) -> None:
    for parameter in loop.model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()
    loop.loss().backward()
    loop.optimizer.step()


def clears_afterwards(loop: Loop) -> None:
    loop.loss().backward()
    loop.optimizer.step()
    loop.model.zero_grad()


def accumulates(loop: Loop) -> None:
    (loop.loss() / 4).backward()
    if loop.index % 4 == 3:
        loop.optimizer.step()
        loop.optimizer.zero_grad()


def accumulates_inside(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    for part in loop.x.chunk(4):
        (loop.model(part).square().mean() / 4).backward()
    loop.optimizer.step()


def clips(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    loop.loss().backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
    loop.optimizer.step()


def logs_a_norm_afterwards(loop: Loop) -> None:
    train(loop)
    nn.utils.clip_grad_norm_(loop.model.parameters(), float("inf"))


def updates_by_hand(loop: Loop) -> None:
    loop.loss().backward()
    for parameter in loop.model.parameters():
        parameter.data.add_(parameter.grad, alpha=-0.1)
        parameter.grad = None


def trains_against_an_attack(loop: Loop) -> None:
    x = loop.x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(loop.model(x), loop.y).backward()
    loop.x = loop.x + 0.1 * x.grad.sign()
    train(loop)


def sets_a_combined_gradient(loop: Loop) -> None:
    """As methods for several tasks do."""
    found: list[Any] = []
    for _ in range(2):
        loop.optimizer.zero_grad()
        loop.loss().backward()
        found.append([p.grad for p in loop.model.parameters()])
    loop.optimizer.zero_grad()
    for parameter, *gradients in zip(loop.model.parameters(), *found, strict=True):
        parameter.grad = sum(gradients)
    loop.optimizer.step()


def perturbs_first(loop: Loop) -> None:
    """Sharpness-aware minimisation."""
    loop.optimizer.zero_grad()
    loop.loss().backward()
    with torch.no_grad():
        moved = [0.05 * p.grad for p in loop.model.parameters()]
        torch._foreach_add_(list(loop.model.parameters()), moved)
        loop.optimizer.zero_grad()
        with torch.enable_grad():
            loop.loss().backward()
        torch._foreach_sub_(list(loop.model.parameters()), moved)
    loop.optimizer.step()


def uses_autograd_grad(loop: Loop) -> None:
    loop.optimizer.zero_grad()
    for parameter, gradient in zip(
        loop.model.parameters(), torch.autograd.grad(loop.loss(), list(loop.model.parameters())), strict=True
    ):
        parameter.grad = gradient
    loop.optimizer.step()


TWINS = [
    train,
    drops_by_hand,
    clears_to_zeros,
    clears_data,
    clears_afterwards,
    accumulates,
    accumulates_inside,
    clips,
    logs_a_norm_afterwards,
    trains_against_an_attack,
    sets_a_combined_gradient,
    perturbs_first,
    uses_autograd_grad,
]


@pytest.mark.parametrize("body", TWINS, ids=lambda body: body.__name__)
@pytest.mark.parametrize("every", [0, 3, 50])
def test_a_right_order_is_silent(body, every: int):
    assert Loop(statistics_every=every).run(body) == []


def test_a_loop_that_updates_by_hand_is_silent():
    assert Loop(optimizer=[]).run(updates_by_hand) == []


def test_a_closure_is_silent():
    def body(loop: Loop) -> None:
        def closure() -> torch.Tensor:
            loop.optimizer.zero_grad()
            loss = loop.loss()
            loss.backward()
            return loss

        loop.optimizer.step(closure)

    assert Loop(optimizer=lambda parameters: torch.optim.LBFGS(parameters, max_iter=3)).run(body) == []


# Gradient scalers


class Scaled(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)


def bypasses(loop: Scaled) -> None:
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.optimizer.step()


def clips_scaled(loop: Scaled) -> None:
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()


def scales(loop: Scaled) -> None:
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.scaler.unscale_(loop.optimizer)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()


def unscales_by_hand(loop: Scaled) -> None:
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    for parameter in loop.model.parameters():
        parameter.grad.div_(loop.scaler.get_scale())
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    loop.optimizer.step()


def steps_itself_after_unscaling(loop: Scaled) -> None:
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.scaler.unscale_(loop.optimizer)
    loop.optimizer.step()
    loop.scaler.update()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (bypasses, {"scaler-bypassed": 0}),
        (clips_scaled, {"clipping-before-unscaling": 0}),
        (scales, {}),
        (unscales_by_hand, {"scaler-not-updated": 1}),  # a warning
        (steps_itself_after_unscaling, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_scalers(body, expected: dict[str, int]):
    assert first(Scaled().run(body, 5)) == expected


def test_a_scaler_that_is_not_updated_is_named_next_to_torchs_own_error():
    loop = Scaled()

    def body(loop: Scaled) -> None:
        loop.optimizer.zero_grad()
        loop.scaler.scale(loop.loss()).backward()
        loop.scaler.step(loop.optimizer)

    with pytest.raises(RuntimeError, match="update"):
        loop.run(body)
    assert first(loop.watch.findings) == {"scaler-not-updated": None} or "scaler-not-updated" in first(
        loop.watch.findings
    )


def test_overflows_that_a_scaler_skips_are_silent():
    loop = Scaled()
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    assert loop.run(scales) == []


def test_an_accumulation_of_another_loop_in_the_process_is_not_this_ones(monkeypatch: pytest.MonkeyPatch):
    """accelerate's state is shared by all; one that an ended loop left in the middle of an accumulation stays."""
    state = pytest.importorskip("accelerate.state")
    left = {"sync_gradients": False, "plugin_kwargs": {"num_steps": 4}}
    monkeypatch.setattr(state.GradientState, "_shared_state", left)
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, incidents=None)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(6):
        watch.step(step)
    assert watch.findings == []
