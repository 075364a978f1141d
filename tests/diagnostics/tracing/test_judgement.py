"""The event and cause of one operator against NumPy, which reads the processor's own floating-point flags."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diagnostics import CAUSES, explain

# name -> (torch, NumPy)
UNARY: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "log": (torch.log, np.log),
    "log2": (torch.log2, np.log2),
    "log1p": (torch.log1p, np.log1p),
    "sqrt": (torch.sqrt, np.sqrt),
    "exp": (torch.exp, np.exp),
    "expm1": (torch.expm1, np.expm1),
    "square": (torch.square, np.square),
    "reciprocal": (torch.reciprocal, np.reciprocal),
    "acos": (torch.acos, np.arccos),
    "atanh": (torch.atanh, np.arctanh),
    "cosh": (torch.cosh, np.cosh),
}
BINARY: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "add": (torch.add, np.add),
    "sub": (torch.sub, np.subtract),
    "mul": (torch.mul, np.multiply),
    "div": (torch.div, np.divide),
    "pow": (torch.pow, np.power),
}
FLAGS = {"divide": "divide_by_zero", "invalid": "invalid", "over": "overflow"}  # NumPy's names, in its order
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, 1e-3, 40.0, 1e4, -1e4, 1e18, -1e18, 3e38, -3e38, 1e-30, 1e-45]


def flag(function: Callable[..., np.ndarray], *operands: float) -> str | None:
    """The first flag NumPy raises in float32; None where the result is finite."""
    arrays = [np.array([value], dtype=np.float32) for value in operands]
    with np.errstate(all="ignore"):
        if np.isfinite(function(*arrays)).all():
            return None
    for name, event_name in FLAGS.items():
        with np.errstate(**{"all": "ignore", name: "raise"}):  # type: ignore[arg-type]
            try:
                function(*arrays)
            except FloatingPointError:
                return event_name
    raise AssertionError("not finite, and no flag")


def event(function: Callable[..., Tensor], *operands: float) -> str | None:
    tensors = [torch.tensor([value], dtype=torch.float32) for value in operands]
    verdict = explain(lambda: function(*tensors).sum())
    assert verdict is None or verdict.cause in CAUSES
    return None if verdict is None else verdict.exception


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(UNARY)), st.sampled_from(SPECIAL))
def test_one_operand_raises_what_the_processor_raises(name: str, x: float) -> None:
    by_torch, by_numpy = UNARY[name]
    assert event(by_torch, x) == flag(by_numpy, x)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(BINARY)), st.sampled_from(SPECIAL), st.sampled_from(SPECIAL))
def test_two_operands_raise_what_the_processor_raises(name: str, x: float, y: float) -> None:
    by_torch, by_numpy = BINARY[name]
    assert event(by_torch, x, y) == flag(by_numpy, x, y)


HALF = torch.float16


@pytest.mark.parametrize(
    ("step", "exception", "cause"),
    [
        # zero by rounding, at one operator's distance and more
        (lambda x: 1 / (x.to(HALF) * 0 + 1e-8), "divide_by_zero", "underflow"),
        (lambda x: torch.rsqrt((x.to(HALF) * 1e-5).square()), "divide_by_zero", "underflow"),
        (lambda x: torch.log(torch.softmax(x * 1e4, 0)), "divide_by_zero", "underflow"),
        (lambda x: torch.log(torch.exp(-x * 1e5)), "divide_by_zero", "underflow"),
        (lambda x: x / (x * 1e-30).square().sum().sqrt(), "divide_by_zero", "underflow"),
        (lambda x: x / (x * 1e-4).to(HALF).square().view(-1)[:1].expand(3).float(), "divide_by_zero", "underflow"),
        # zero in fact
        (lambda x: 1 / (x - x), "divide_by_zero", "out_of_domain"),
        (lambda x: (x - x) / (x - x), "invalid", "out_of_domain"),
        (lambda x: torch.log(x * 0), "divide_by_zero", "out_of_domain"),
        # nothing to average
        (lambda x: x[:0].mean(), "invalid", "empty_reduction"),
        (lambda x: x[:1].std(), "invalid", "empty_reduction"),
        (lambda x: x.sum() * 0 / (x > 9).sum(), "invalid", "empty_reduction"),
        (lambda x: x.sum() / (x > 9).float().sum(), "divide_by_zero", "empty_reduction"),
        # too large
        (lambda x: (x * 1e5).to(HALF), "overflow", "overflow"),
        (lambda x: x.mul(1e30).square().sum(), "overflow", "overflow"),
        (lambda x: torch.linalg.vector_norm(x * 1e30), "overflow", "overflow"),
        (lambda x: (x.to(HALF) * 200).outer(x.to(HALF) * 200) @ (x.to(HALF) * 200), "overflow", "overflow"),
        # masks
        (lambda x: torch.softmax(x.masked_fill(x > 0, -math.inf), 0), "invalid", "masked_row"),
        (lambda x: torch.log_softmax(x.masked_fill(x > 0, -math.inf), 0), "invalid", "masked_row"),
    ],
)
def test_cause(step: Callable[[Tensor], Tensor], exception: str, cause: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    verdict = explain(lambda: step(x))
    assert verdict is not None
    assert (verdict.exception, verdict.cause) == (exception, cause)
    assert verdict.source is not None and verdict.source.startswith(__file__)
    assert verdict.fix


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.softmax(x.masked_fill(x > 2, -math.inf), 0),
        lambda x: torch.full((3,), -math.inf).maximum(x),
        lambda x: torch.where(x > 9, 1 / (x - x), x),
        lambda x: 1 / (1 + torch.exp(x * 100)),
        lambda x: x.clamp(max=math.inf),
        lambda x: torch.empty(3).copy_(x),
        lambda x: x * 1e30,
    ],
)
def test_what_comes_to_nothing_raises_nothing(step: Callable[[Tensor], Tensor]) -> None:
    assert explain(lambda: step(torch.tensor([1.0, 2.0, 3.0]))) is None
