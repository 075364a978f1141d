"""Faults of weight averaging after the update: the trained model itself is finite."""

import copy
import math

import torch
from torch import Tensor, nn

from shadowlab.bench.corpus.case import Expected, Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def bias_correction_at_step_zero() -> Scene:
    """The average is corrected by 1 - decay**k before anything was averaged: k = 0, 0/0."""
    torch.manual_seed(0)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    total, average = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model).requires_grad_(False)
    for parameter in total.parameters():
        parameter.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)

    def step() -> Tensor:
        loss = one_step()
        correction = 1 - torch.tensor(0.999).pow(0)
        for shown, summed in zip(average.parameters(), total.parameters(), strict=True):
            shown.copy_(summed / correction)  # origin
        return loss

    return Scene(step, [model, average, total], optimizer, batch)


def cast_in_place() -> Scene:
    """Validation casts the live average to float16; a weight of 1e5 is infinite from then on."""
    torch.manual_seed(1)
    model, batch = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), {"x": torch.randn(5, 8)}
    model.get_parameter("0.weight").data[1, 2] = 1e5
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)

    def step() -> Tensor:
        loss = one_step()
        for kept, current in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(current.detach(), 0.01)
        average.half()  # origin
        return loss

    return Scene(step, [model, average], optimizer, batch)


def running_sum_overflow() -> Scene:
    """Stochastic weight averaging keeps a float16 sum of weights; one more summand passes 65504."""
    torch.manual_seed(2)
    model, batch = nn.Linear(8, 4).half(), {"x": torch.randn(5, 8).half()}
    total = copy.deepcopy(model).requires_grad_(False)
    model.weight.data[3, 0] = 2e3
    total.weight[3, 0] = 6.4e4
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    one_step = training_step(lambda: model(batch["x"]).float().abs().mean(), optimizer)

    def step() -> Tensor:
        loss = one_step()
        with torch.no_grad():
            for kept, current in zip(total.parameters(), model.parameters(), strict=True):
                kept.add_(current)  # origin
        return loss

    return Scene(step, [model, total], optimizer, batch)


def undefined_decay() -> Scene:
    """A decay computed from a half-life of zero samples is NaN, and every average with it."""
    torch.manual_seed(3)
    model, batch = nn.Linear(8, 4), {"x": torch.randn(5, 8)}
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)
    decay = math.inf * 0.0

    def step() -> Tensor:
        loss = one_step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)  # origin
        return loss

    return Scene(step, [model, average], optimizer, batch)


def buffer_average_divides_by_zero() -> Scene:
    """Averages are weighted by the number of samples seen since the last update, which is zero; -inf in a buffer."""
    torch.manual_seed(4)

    class Average(nn.Module):
        mean: Tensor
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4, 8))
            self.register_buffer("count", torch.zeros(()))

        @torch.no_grad()
        def update(self, weight: Tensor) -> None:
            self.mean.add_(torch.div(weight - self.mean, self.count))  # origin
            self.count.add_(1)

    model, average, batch = nn.Linear(8, 4), Average(), {"x": torch.randn(5, 8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    one_step = training_step(lambda: model(batch["x"]).pow(2).mean(), optimizer)

    def step() -> Tensor:
        loss = one_step()
        average.update(model.weight)
        return loss

    return Scene(step, [model, average], optimizer, batch)


def average_of_poisoned_weights() -> Scene:
    """The average goes bad, and the update before it is to blame: AdamW's eps is zero in float16."""
    torch.manual_seed(5)
    model, batch = nn.Linear(8, 4, bias=False).half(), {"x": torch.ones(5, 8).half()}
    average = copy.deepcopy(model).float().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    def step() -> Tensor:
        loss = 2e-4 * model(batch["x"]).float().sum()
        loss.backward()
        optimizer.step()  # origin
        with torch.no_grad():
            for kept, current in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(current.float(), 0.01)
        return loss

    return Scene(step, [model, average], optimizer, batch)


def _born(exception: object, cause: str, at_origin: bool = True) -> Expected:
    return Expected("ema", exception, cause, at_origin=at_origin)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "bias_correction_at_step_zero",
        "synthetic",
        bias_correction_at_step_zero,
        _born("invalid", "out_of_domain"),
        ("models",),
    ),
    Fault(
        "cast_in_place",
        "ultralytics/ultralytics#24731",
        cast_in_place,
        _born("overflow", "overflow"),
        ("models", "float16", "inf_first"),
    ),
    Fault(
        "running_sum_overflow",
        "synthetic",
        running_sum_overflow,
        _born("overflow", "overflow"),
        ("models", "float16", "inf_first"),
    ),
    Fault("undefined_decay", "synthetic", undefined_decay, _born(..., "bad_scalar"), ("models", "foreach")),
    Fault(
        "buffer_average_divides_by_zero",
        "synthetic",
        buffer_average_divides_by_zero,
        _born("divide_by_zero", "out_of_domain", at_origin=True),
        ("models", "buffer", "inf_first"),
    ),
    Fault(
        "average_of_poisoned_weights",
        "pytorch/pytorch#147437",
        average_of_poisoned_weights,
        Expected("optimizer", "divide_by_zero", "underflow", at_origin=True),
        ("models", "float16", "far"),
    ),
)
