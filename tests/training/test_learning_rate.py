"""The schedule is a pure function of the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.settings.schema import OptimizerConfig
from shadowlab.training.optimizer import learning_rate

MAX = 100


def rates(**changes: object) -> list[float]:
    config = OptimizerConfig.model_validate({"learning_rate": 2.0, **changes})
    return [learning_rate(config, step, MAX) for step in range(MAX)]


def test_constant() -> None:
    assert rates() == [2.0] * MAX


def test_warmup_is_linear_and_moves_at_once() -> None:
    """A rate of 0 in the first step is 0 * inf = NaN under float16 AdamW, and a wasted step everywhere else."""
    assert rates(warmup_steps=4)[:6] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine() -> None:
    values = rates(schedule="cosine", warmup_steps=20)
    assert values[19] == values[20] == 2.0
    assert values[60] == pytest.approx(1.0)
    assert values[99] == pytest.approx(1.0 + math.cos(math.pi * 79 / 80))
    assert values[20:] == sorted(values[20:], reverse=True)
    config = OptimizerConfig.model_validate({"learning_rate": 2.0, "schedule": "cosine"})
    assert learning_rate(config, MAX, MAX) == 0.0
    assert learning_rate(config, 10 * MAX, MAX) == 0.0


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from(["constant", "cosine"]))
def test_never_negative_never_above(step: int, warmup: int, schedule: str) -> None:
    config = OptimizerConfig.model_validate({"learning_rate": 2.0, "warmup_steps": warmup, "schedule": schedule})
    assert 0.0 <= learning_rate(config, step, MAX) <= 2.0
