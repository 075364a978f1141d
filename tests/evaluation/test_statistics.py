"""Statistics of one pass against closed forms and exact counts."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.evaluation import statistics as module
from shadowlab.evaluation.statistics import REPLICATES, Resampling, SignTest, TrackStatistics


def summaries(values: np.ndarray, seeds: int, name: str = "t") -> object:
    """values: (N, S) of one metric."""
    statistics = TrackStatistics(name, len(values), {"m": seeds}, ["x"])
    for row in values:
        statistics.add({"m": {"x": row.tolist()}})
    return statistics.summaries()["m"]["x"]


def test_mean_and_deviation_over_seeds_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=(40, 10))
    found = summaries(values, 10)
    assert found.mean == pytest.approx(values.mean(), abs=1e-14)
    assert found.std == pytest.approx(values.mean(axis=0).std(ddof=1), abs=1e-14)


def test_the_interval_is_that_of_the_mean() -> None:
    """Of normal samples it is mean +- 1.96 sigma / sqrt(N), to the noise of 2000 replicates."""
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 1))
    found = summaries(values, 0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_every_replicate_draws_as_many_samples_as_there_are_and_each_as_often() -> None:
    drawn = Resampling(30, "any")
    counts = np.stack([drawn.draw() for _ in range(30)])
    assert (counts.sum(axis=0) == 30).all()
    # A multinomial's count has mean 1 and variance 1 - 1/N, two of them covariance -1/N: 5 sigma of their estimates.
    assert np.abs(counts.mean(axis=1) - 1).max() < 5 / math.sqrt(REPLICATES)
    assert np.abs(counts.var(axis=1) - 29 / 30).max() < 5 * math.sqrt(3 / REPLICATES)
    covariance = np.cov(counts)
    assert np.abs(covariance[~np.eye(30, dtype=bool)] + 1 / 30).max() < 6 / math.sqrt(REPLICATES)


def test_what_cannot_be_known_is_none_and_what_never_varies_is_0() -> None:
    one_seed, one_sample, fixed = (
        summaries(np.array([[0.5], [1.0]]), 1),
        summaries(np.array([[0.5, 0.7]]), 2),
        summaries(np.array([[1.0], [1.0], [1.0]]), 0),
    )
    assert one_seed.std is None and one_seed.low is not None
    assert one_sample.low is None and one_sample.high is None and one_sample.std is not None
    assert (fixed.mean, fixed.std, fixed.low, fixed.high) == (1.0, 0.0, 1.0, 1.0)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_the_binomials_sum(wins: int, losses: int) -> None:
    n = wins + losses
    uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(wins - losses)]
    exact = Fraction(sum(math.comb(n, k) for k in uneven), 2**n)
    assert SignTest.of(wins, losses, 3).p == pytest.approx(float(exact), rel=1e-12)


def test_the_sign_test_of_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SignTest.of(10, 0, 0).p == 2 / 1024
    assert SignTest.of(0, 0, 5).p == 1.0
    assert SignTest.of(4000, 0, 0).p == 0.0  # 2^-3999: beyond any float
    assert SignTest.of(130_000, 127_612, 0).p == pytest.approx(math.erfc(2387 / math.sqrt(2 * 257_612)), rel=1e-3)
    counts = [(5100, 4900), (3000, 2999), (900, 100), (5000, 4999), (1, 0)]
    whole = [SignTest.of(*pair, 0).p for pair in counts]
    monkeypatch.setattr(module, "_MOST_WHOLE", 0)
    assert [SignTest.of(*pair, 0).p for pair in counts] == pytest.approx(whole, rel=1e-8)
