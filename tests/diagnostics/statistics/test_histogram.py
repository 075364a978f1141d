"""Histograms of whatever a broken run holds."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from diagnostics.statistics.parameters import Histogram, histogram

MAX, TINY = 3.4028234663852886e38, 1e-45


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(width=16) | st.sampled_from([MAX, -MAX, TINY, math.nan, math.inf, 0.0]), max_size=30),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(1, 70),
)
def test_every_element_is_counted_once(values: list[float], dtype: torch.dtype, num_bins: int):
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    seen = histogram(x, num_bins)
    assert sum(seen.counts) + seen.num_nan + seen.num_inf == len(values)
    assert seen.num_nan == int(x.isnan().sum()) and seen.num_inf == int(x.isinf().sum())
    finite = x[x.isfinite()].double()
    if len(finite):
        assert (seen.low, seen.high) == (float(finite.min()), float(finite.max()))
        assert len(seen.counts) == (1 if seen.low == seen.high else num_bins)
        if len(seen.counts) > 1:
            assert seen.counts[0] > 0 and seen.counts[-1] > 0


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(0), Histogram(0.0, 0.0, [], 0, 0)),
        (torch.tensor(2.0), Histogram(2.0, 2.0, [1], 0, 0)),
        (torch.full((3,), math.nan), Histogram(0.0, 0.0, [], 3, 0)),
        (torch.tensor([math.inf, -math.inf, 1.0]), Histogram(1.0, 1.0, [1], 0, 2)),
        (torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), Histogram(0.0, 4.0, [1, 1, 1, 2], 0, 0)),
        (torch.tensor([-MAX, 0.0, MAX]), Histogram(-MAX, MAX, [1, 0, 1, 1], 0, 0)),
        (torch.tensor([0.0, TINY]), Histogram(0.0, 1.401298464324817e-45, [1, 0, 0, 1], 0, 0)),
        (
            torch.tensor([-1.7e308, 0.0, 1.7e308], dtype=torch.float64),
            Histogram(-1.7e308, 1.7e308, [1, 0, 1, 1], 0, 0),
        ),
        (torch.tensor([0.0, 5e-324], dtype=torch.float64), Histogram(0.0, 5e-324, [1, 0, 0, 1], 0, 0)),
        (torch.tensor([1e300, 2e300], dtype=torch.float64), Histogram(1e300, 2e300, [1, 0, 0, 1], 0, 0)),
    ],
)
def test_corner_cases(x: torch.Tensor, expected: Histogram):
    assert histogram(x, 4) == expected


def test_bin_count_is_checked():
    with pytest.raises(ValueError, match="at least 1 bin, not 0"):
        histogram(torch.ones(3), 0)


def test_same_as_torch():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert histogram(x, 10).counts == torch.histogram(x.double(), 10).hist.int().tolist()
