"""What a verdict calls the operands, and how it says that a denominator became zero."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import Verdict, explain


def found(step: object, **asked: object) -> Verdict:
    verdict = explain(step, **asked)  # type: ignore[arg-type]
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("foreach", [False, True])
def test_an_eps_that_float16_rounds_to_zero_is_told_from_the_square_on(foreach: bool) -> None:
    model = nn.Linear(4, 3).half()
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-8, foreach=foreach)
    batch = torch.full((2, 4), 0.01, dtype=torch.half)

    def step() -> Tensor:
        loss = model(batch).float().mean()
        loss.backward()
        optimizer.step()
        return loss

    witness = found(step, model=model, optimizer=optimizer).witness
    assert witness["roles"] == {"tensor1": "numerator", "tensor2": "denominator"}
    assert witness["names"]["self"] == "weight" and witness["names"]["tensor1"] == "weight.exp_avg"
    assert witness["expression_at"].rpartition(":")[0].endswith("torch/optim/adam.py")
    first, *_, last = witness["zero"]
    assert (first["op"], first["tensor"], first["dtype"]) == ("addcmul", "weight.exp_avg_sq", "float16")
    gradient = first["operands"]["tensor1"]
    assert first["in_float64"] == pytest.approx(0.001 * gradient**2)
    assert last["op"] == "add" and last["in_float64"] == pytest.approx(abs(gradient), rel=1e-3)
    assert "5.96e-08" in witness["why_zero"] and "the 1e-08 that is added to it rounds to 0" in witness["why_zero"]


def test_operands_have_the_names_of_the_users_line() -> None:
    x = torch.ones(3, requires_grad=True)

    def share() -> Tensor:
        total = (x * 0).sum()
        return ((x + 1) / total).sum()

    def in_place() -> Tensor:
        part, total = x * 1, x * 0
        part /= total
        return part.sum()

    def function() -> Tensor:
        likely = x * 0
        return torch.log(likely).sum()

    def several() -> Tensor:
        a, b, c = x * 1, x * 2, x * 0
        return (a / b + a / c).sum()  # which of the two is known

    wanted = {
        share: {"self": "x + 1", "other": "total"},
        in_place: {"self": "part", "other": "total"},
        function: {"self": "likely"},
        several: {"self": "a", "other": "c"},
    }
    for step, names in wanted.items():
        verdict = found(step)
        assert {key: verdict.witness["names"][key] for key in names} == names, step
    text = str(found(share))
    assert "numerator x + 1 = 2, denominator total = 0 (at [0] of [3])" in text


def test_what_the_code_calls_otherwise_has_no_name_of_it() -> None:
    x, model = torch.zeros(3, requires_grad=True), nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    backward = found(lambda: torch.sqrt(model.weight).sum().backward(), model=model)
    assert backward.phase == "backward" and "expression" not in backward.witness  # no line of code calls it
    mean = found(lambda: F.mse_loss(x / torch.zeros(3), x))
    assert mean.witness["names"].get("other") == "torch.zeros(3)"


def test_a_verdict_with_names_comes_back_from_json() -> None:
    x = torch.zeros(2, requires_grad=True)
    verdict = found(lambda: (1 + x).div(x).sum())
    again = Verdict.from_json(copy.deepcopy(verdict.to_json()))
    assert again.operand_label("other") == "denominator x" and again.operand_label("elsewhere") == "elsewhere"
