"""Small training loops, each with a fault that a test turns on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from diagnostics import NonFiniteError, Watch
from tests.diagnostics.states import bits_of, state_of


class Net(nn.Module):
    """Two layers around a function that a test puts in."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda x: x, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), norm or nn.Identity(), nn.Linear(6, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.norm(torch.tanh(self.first(x)))))


@dataclass
class Loop:
    """A small loop whose parts a test changes. `bad_at`: the step in which the fault happens."""

    model: nn.Module
    optimizer: Any
    watch: Watch
    prepare: Callable[["Loop", int], None] = lambda loop, index: None
    loss: Callable[[Tensor, Tensor], Tensor] = lambda predicted, target: (predicted - target).square().mean()
    after_backward: Callable[["Loop"], None] = lambda loop: None
    after_step: Callable[["Loop"], None] = lambda loop: None
    dtype: torch.dtype = torch.float32
    averages: tuple[Tensor, ...] = ()

    def batch(self) -> dict[str, Any]:
        x, y = torch.randn(5, 4), torch.randn(5, 3)
        return {"x": x.to(self.dtype), "y": y.to(self.dtype), "ids": [f"s{i}" for i in range(5)]}

    def one(self, batch: dict[str, Any]) -> Tensor:
        self.optimizer.zero_grad()
        x = batch["x"] + 0.01 * torch.randn_like(batch["x"])  # randomness inside the step
        loss = self.loss(self.model(x), batch["y"])
        loss.backward()
        self.after_backward(self)
        self.optimizer.step()
        self.after_step(self)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        averages = {f"average {i}": tensor for i, tensor in enumerate(self.averages)}
        return state_of([self.model], self.optimizer) | averages

    def random(self) -> tuple[Any, ...]:
        return bytes(torch.get_rng_state()), numpy.random.get_state()[1].tobytes()

    def run(self, num_steps: int, first: int = 0) -> NonFiniteError | None:
        """Asserts that a step that trips leaves everything as it was."""
        for index in range(first, first + num_steps):
            batch = self.batch()
            self.prepare(self, index)
            before, random = bits_of(self.state()), self.random()
            tripped: NonFiniteError | None = None
            try:
                self.watch.step(lambda: self.one(batch), batch=batch, step_index=index)  # noqa: B023
            except NonFiniteError as error:
                tripped = error
            if tripped is not None:
                after = bits_of(self.state())
                changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
                assert not changed, changed
                assert self.random() == random
                assert all(p.grad is None for p in self.model.parameters())
                assert (tripped.verdict.step, tripped.verdict.reproducible) == (index, True)
                return tripped
        return None


def loop_of(
    model: nn.Module,
    folder: Path,
    optimizer: Any = None,
    averages: tuple[Tensor, ...] = (),
    watch: dict[str, Any] | None = None,
    **parts: Any,
) -> Loop:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"incidents": folder, "averages": averages, **(watch or {})}
    return Loop(model, optimizer, Watch(model, optimizer, **options), averages=averages, **parts)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient / torch.zeros_like(gradient)


@dataclass
class Switch:
    """Turns a fault on; a mutable flag that the replay sees, too."""

    on: bool = False


def case_forward(folder: Path, switch: Switch) -> Loop:
    return loop_of(Net(lambda x: (x - 2).sqrt() if switch.on else x), folder)


def case_loss(folder: Path, switch: Switch) -> Loop:
    def loss(predicted: Tensor, target: Tensor) -> Tensor:
        error = (predicted - target).square().mean(1)
        return (error / (error * 0 if switch.on else 1)).mean()

    return loop_of(Net(), folder, loss=loss)


def case_backward(folder: Path, switch: Switch) -> Loop:
    return loop_of(Net(lambda x: BadGradient.apply(x) if switch.on else x), folder)


def case_clip(folder: Path, switch: Switch) -> Loop:
    def clip(loop: Loop) -> None:
        if switch.on:  # finite gradients whose norm is not
            for parameter in loop.model.parameters():
                parameter.grad.mul_(0).add_(3e38)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)

    return loop_of(Net(), folder, after_backward=clip)


def case_optimizer(folder: Path, switch: Switch, **options: Any) -> Loop:
    """AdamW on float16, where its eps of 1e-8 is zero."""
    model = Net().half()

    def choose_eps(loop: Loop, index: int) -> None:
        loop.optimizer.param_groups[0]["eps"] = 1e-8 if switch.on else 1e-2
        for state in loop.optimizer.state.values() if switch.on else ():
            state["exp_avg_sq"].zero_()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-2, **options)
    return loop_of(model, folder, optimizer, prepare=choose_eps, dtype=torch.float16)


def case_optimizer_foreach(folder: Path, switch: Switch) -> Loop:
    return case_optimizer(folder, switch, foreach=True)


def case_optimizer_single(folder: Path, switch: Switch) -> Loop:
    return case_optimizer(folder, switch, foreach=False)


def case_average(folder: Path, switch: Switch) -> Loop:
    model = Net()
    averages = tuple(p.detach().half() for p in model.parameters())

    def update(loop: Loop) -> None:
        for average, parameter in zip(averages, loop.model.parameters(), strict=True):
            average.lerp_(parameter.detach().half() * (1e9 if switch.on else 1), 0.1)

    return loop_of(model, folder, averages=averages, after_step=update)


def case_buffer(folder: Path, switch: Switch) -> Loop:
    """The squares of batch normalisation's running variance overflow, in an activation that is finite."""
    model = Net(norm=Scaled(switch))
    return loop_of(model, folder)


class Scaled(nn.Module):
    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.norm, self.switch = nn.BatchNorm1d(6), switch

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * 1e25) if self.switch.on else self.norm(x)


CASES = {
    name.removeprefix("case_"): build
    for name, build in list(globals().items())
    if name.startswith("case_") and name != "case_optimizer"
}
PHASES = {"average": "ema", "buffer": "forward", "optimizer_foreach": "optimizer", "optimizer_single": "optimizer"}
