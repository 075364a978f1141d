"""Which samples a verdict names where a step does not treat the batch as one tensor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics import explain

BAD = 2
Function = Callable[[Tensor], Tensor]


def number_put_into_a_row(y: Tensor) -> Tensor:
    y = y.clone()
    y[BAD, 1] = torch.nan
    return y


def operator_on_a_view_of_a_row(y: Tensor) -> Tensor:
    y = y.clone()
    y[BAD].sub_(5).log_()
    return y


def operator_on_a_column(y: Tensor) -> Tensor:
    y = y + 5
    y[BAD].neg_()
    y[:, 1].sqrt_()
    return y


def operator_on_one_row_of_a_list(y: Tensor) -> Tensor:
    return torch.stack([(row - 5).sqrt() if i == BAD else row for i, row in enumerate(y)])


def losses_one_by_one(y: Tensor) -> Tensor:
    total = torch.zeros(())
    for i, row in enumerate(y):
        total = total + (row + (-5 if i == BAD else 5)).sqrt().mean()
    return total


def chunks(y: Tensor) -> Tensor:
    """The second row of the second chunk is row 3 of four."""
    parts = [(part + 5) * torch.tensor([[1.0], [-1.0 if i else 1.0]]) for i, part in enumerate(y[1:].split(2))]
    return torch.cat([part.log() for part in parts])


def root_of_nothing(y: Tensor) -> Tensor:
    """Its slope is infinite: born in backward, of one row."""
    return torch.stack([(row * 0).sum().sqrt() if i == BAD else row.sum() for i, row in enumerate(y)])


def hook_that_spoils_a_row(y: Tensor) -> Tensor:
    def spoil(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[BAD] = torch.nan
        return gradient

    y.register_hook(spoil)
    return y * 2


class SpoilsARow(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[BAD, 1] = torch.nan
        return gradient


FUNCTIONS: list[tuple[Function, tuple[int, ...]]] = [
    (number_put_into_a_row, (BAD,)),
    (operator_on_a_view_of_a_row, (BAD,)),
    (operator_on_a_column, (BAD,)),
    (operator_on_one_row_of_a_list, (BAD,)),
    (losses_one_by_one, (BAD,)),
    (chunks, (4,)),
    (root_of_nothing, (BAD,)),
    (hook_that_spoils_a_row, (BAD,)),
    (SpoilsARow.apply, (BAD,)),
]


@pytest.mark.parametrize(("function", "samples"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", None))
def test_a_sample_is_named_though_its_row_is_treated_alone(function: Function, samples: tuple[int, ...]):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    batch = {"x": torch.rand(5, 4), "ids": [f"s{i}" for i in range(5)]}

    def step() -> Tensor:
        loss = function(model(batch["x"])).sum()
        loss.backward()
        return loss

    verdict = explain(step, model=model, batch=batch)
    assert verdict is not None
    assert verdict.samples == samples, verdict
    assert verdict.sample_ids == tuple(f"s{i}" for i in samples)


def test_rows_of_a_weight_are_no_samples():
    torch.manual_seed(0)
    model = nn.Linear(4, 5)  # as many rows as samples

    def spoil(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[3] = torch.nan
        return gradient

    model.weight.register_hook(spoil)
    batch = {"x": torch.rand(5, 4)}
    verdict = explain(lambda: model(batch["x"]).square().sum().backward(), model=model, batch=batch)
    assert verdict is not None
    assert (verdict.phase, verdict.samples) == ("backward", ()), verdict
