"""Clipping, scaled losses, closures, first steps: each fault is named, each twin that looks like it is silent."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from diagnostics import Watch
from tests.diagnostics.contracts.loops import Loop, Net, first, train

# Clipping, by functions that were imported by their names


def clips_nothing(clip: Any) -> Any:
    def body(loop: Loop) -> None:
        loop.optimizer.zero_grad()
        loss = loop.loss()
        clip(loop.model.parameters(), 0.1)
        loss.backward()
        loop.optimizer.step()

    return body


def clips_after_the_step(clip: Any) -> Any:
    def body(loop: Loop) -> None:
        train(loop)
        clip(loop.model.parameters(), 0.1)

    return body


def test_gradients_are_clipped_where_there_are_none_yet():
    """`clip_grad_value_` raises there."""
    (found,) = Loop().run(clips_nothing(clip_grad_norm_))
    assert (found.rule, found.step, found.where) == ("clipping-before-backward", 1, "clip_grad_norm_")


@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_])
def test_gradients_are_clipped_where_they_have_been_used(clip: Any):
    (found,) = Loop().run(clips_after_the_step(clip))
    assert (found.rule, found.step, found.where) == ("clipping-after-step", 0, clip.__name__)


def test_a_closure_is_clipped_before_its_backward():
    """The gradients are those of the step before."""

    def body(loop: Loop) -> None:
        def closure() -> Tensor:
            loss = loop.loss()
            clip_grad_norm_(loop.model.parameters(), 0.1)
            loop.optimizer.zero_grad()
            loss.backward()
            return loss

        loop.optimizer.step(closure)

    assert first(Loop().run(body)) == {"clipping-after-step": 1}


class Pair(Loop):
    """A generator and a critic, and a scaler."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.generator, self.critic = nn.Linear(4, 8), Net()
        models = [self.generator, self.critic]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in models]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        self.watch = Watch(models, self.optimizers, incidents=None)
        self.between = lambda loop: None

    def judged(self, x: Tensor) -> Tensor:
        return self.critic(x).square().mean()


def both(loop: Pair, *, scaled: Any, clips: bool = False) -> None:
    """Each in its turn; `scaled` scales the critic's losses."""
    fake = loop.generator(torch.randn(16, 4))
    for number, loss in enumerate((-loop.judged(fake), loop.judged(fake.detach()) - loop.judged(loop.x))):
        optimizer = loop.optimizers[number]
        optimizer.zero_grad()
        if number:
            scaled(loop, loss)
        else:
            loop.scaler.scale(loss).backward()
        loop.scaler.unscale_(optimizer)
        if clips:
            clip_grad_value_(optimizer.param_groups[0]["params"], 1.0)
        loop.scaler.step(optimizer)
    loop.scaler.update()


def test_a_loss_that_is_not_scaled_and_unscaled():
    found = Pair().run(lambda loop: both(loop, scaled=lambda pair, loss: loss.backward()), 5)
    assert first(found) == {"scaler-bypassed": 1} and "optimizer 1" in found[0].where


def halves(pair: Pair, loss: Tensor) -> None:
    (pair.scaler.scale(loss) / 2).backward(retain_graph=True)
    (pair.scaler.scale(loss) / 2).backward()


def together(pair: Pair, loss: Tensor) -> None:
    first_loss, second_loss = pair.scaler.scale([loss, loss * 0.5])
    (first_loss + second_loss).backward()


def twice(pair: Pair, loss: Tensor) -> None:
    """The same scaled loss is differentiated twice, and something else on the way."""
    scaled = pair.scaler.scale(loss)
    scaled.backward(retain_graph=True)
    x = pair.x.clone().requires_grad_()
    torch.autograd.grad(pair.critic(x).sum(), x)
    scaled.backward()


@pytest.mark.parametrize("scaled", [halves, together, twice])
def test_scaled_losses_in_any_form_are_silent(scaled: Any):
    assert Pair().run(lambda loop: both(loop, scaled=scaled, clips=True), 5) == []


class Scaled(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)


def scaled_step(loop: Scaled, *, clears: bool = True, clips: bool = False) -> None:
    if clears:
        loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    if clips:
        clip_grad_value_(loop.model.parameters(), 1.0)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()


def test_a_scaler_hides_neither_what_is_not_cleared_nor_clipped_values():
    assert first(Scaled().run(lambda loop: scaled_step(loop, clears=False), 5)) == {"gradients-not-cleared": 1}
    assert first(Scaled().run(lambda loop: scaled_step(loop, clips=True), 5)) == {"clipping-before-unscaling": 0}


def test_a_step_that_the_scaler_leaves_out_is_no_step():
    """An overflow in the first step, and cleared as it should be."""
    loop = Scaled()
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    assert loop.run(lambda loop: scaled_step(loop)) == []


def test_a_closure_that_computes_nothing_is_a_plain_step():
    """So does Lightning step in manual optimization."""

    def body(loop: Loop) -> None:
        loop.loss().backward()
        loop.optimizer.step(lambda: None)

    assert first(Loop().run(body)) == {"gradients-not-cleared": 1}


# First steps


def accumulates(last: int) -> Any:
    def body(loop: Loop) -> None:
        (loop.loss() / 4).backward()
        if loop.index % 4 == last:
            loop.optimizer.step()
            loop.optimizer.zero_grad()

    return body


def test_a_first_update_of_one_micro_batch_is_a_warning():
    (found,) = Loop().run(accumulates(last=0))
    assert (found.rule, found.severity, found.step) == ("accumulation-count", "warning", 4)
    assert "(index + 1) % n == 0" in found.advice
    assert Loop().run(accumulates(last=3), 14) == []


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch's own
def test_a_schedule_that_is_stepped_with_each_micro_batch():
    """In the middle of an accumulation no optimizer asks for the rate."""
    loop = Loop()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, T_max=100)

    def body(loop: Loop, *, each: bool = True) -> None:
        (loop.loss() / 4).backward()
        if loop.index % 4 == 3:
            loop.optimizer.step()
            loop.optimizer.zero_grad()
        if each or loop.index % 4 == 3:
            schedule.step()

    assert first(loop.run(body, 4))["scheduler-order"] == 0
    loop = Loop()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, T_max=100)
    assert loop.run(lambda loop: body(loop, each=False), 8) == []


def unfreezes(loop: Loop, *, adds: bool) -> None:
    if loop.index == 5:
        loop.model.first.requires_grad_(True)
        if adds:
            loop.optimizer.add_param_group({"params": list(loop.model.first.parameters())})
    loop.optimizer.zero_grad()
    cross_entropy(loop.model(loop.x), loop.y).backward()
    loop.optimizer.step()


@pytest.mark.parametrize("adds", [True, False])
def test_what_is_unfrozen_later_must_have_an_optimizer(adds: bool):
    model = Net()
    model.first.requires_grad_(False)
    loop = Loop(model, torch.optim.SGD(model.last.parameters(), lr=0.1))
    expected = {} if adds else {"parameter-without-optimizer": 7}  # seen to train from step 6 on
    assert first(loop.run(lambda loop: unfreezes(loop, adds=adds))) == expected


def test_a_model_that_is_frozen_and_unfrozen_all_the_time_is_silent():
    model = Net()

    def body(loop: Loop) -> None:
        loop.model.last.requires_grad_(loop.index % 2 == 0)
        train(loop)

    assert Loop(model).run(body, 30) == []
