"""Interceptions see every call, several at once, and leave nothing behind."""

from typing import Any

import torch

from diagnostics.patching import (
    StandIn,
    after_gradients,
    before_backward,
    before_grad,
    before_scale,
    before_scaler_step,
)


def test_two_observers_see_each_call_and_leave_no_trace():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    owners = (torch.autograd, torch.amp.GradScaler)
    before = [dict(vars(owner)) for owner in owners]
    seen: list[tuple[str, object]] = []

    def step() -> None:
        loss = weight.sum()
        torch.autograd.grad(loss, weight, retain_graph=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    with (
        after_gradients(lambda: seen.append(("gradients", None))),
        before_backward(lambda roots: seen.append(("backward", roots.item()))),
        before_backward(lambda roots: seen.append(("backward again", roots.item()))),
        before_grad(lambda outputs, inputs: seen.append(("grad", inputs is weight))),
        before_scale(lambda one, loss: seen.append(("scale", one is scaler, loss.item()))),
        before_scaler_step(lambda one: seen.append(("scaler step", one is scaler))),
    ):
        step()
    # The scaled loss is 8 * 2; `step` and `update` are both steps of a scaler.
    by_grad = [("grad", True), ("gradients", None)]
    by_backward = [("scale", True, 2.0), ("backward again", 16.0), ("backward", 16.0), ("gradients", None)]
    assert seen == [*by_grad, *by_backward, ("scaler step", True), ("scaler step", True)]
    assert [dict(vars(owner)) for owner in owners] == before
    step()
    assert len(seen) == 8


def test_a_stand_in_comes_back_and_leaves_others_alone():
    class Owner:
        def call(self) -> str:
            return "own"

    own, owner = Owner.call, Owner()
    stand_in = StandIn(Owner, "call", lambda original: lambda owner: f"heard {original(owner)}")
    stand_in.put()
    stand_in.put()
    assert owner.call() == "heard own" and stand_in.is_there
    Owner.call = own  # another one, that had been put first, is taken back
    assert not stand_in.is_there
    stand_in.put()
    assert owner.call() == "heard own"
    Owner.call = other = lambda owner: "other"
    stand_in.take_back()
    assert Owner.call is other and not stand_in.is_there
    Owner.call = own
    stand_in.put()
    stand_in.take_back()
    assert Owner.call is own


def test_a_stand_in_that_another_put_back_is_taken_back_too() -> None:
    class Kind:
        def name(self) -> str:
            return "kind"

    def make(original: Any) -> Any:
        return lambda self: "own " + original(self)

    def other(self: Kind) -> str:
        return "other"

    first = vars(Kind)["name"]
    stand_in = StandIn(Kind, "name", make)
    stand_in.put()
    ours = vars(Kind)["name"]
    setattr(Kind, "name", other)  # noqa: B010
    stand_in.put()
    assert Kind().name() == "own other"
    setattr(Kind, "name", ours)  # noqa: B010 - it takes ours for the original
    stand_in.put()
    assert Kind().name() == "own kind"
    stand_in.take_back()
    assert vars(Kind)["name"] is first
