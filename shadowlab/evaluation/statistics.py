"""Means, deviations and intervals of any number of samples in one pass, and the sign test.

Legend: N samples of a track, S seeds, R replicates of the bootstrap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadowlab.seeding import derive_seed

REPLICATES = 2000
"""Of the bootstrap. 50 of them lie beyond each end of a 95 % interval."""
_ENDS = (0.025, 0.975)
_MOST_WHOLE = 10_000  # samples of a sign test that is summed in whole numbers


class Resampling:
    """How often each of N samples is drawn in each replicate of a bootstrap, one sample after the other.

    A replicate draws N samples with replacement. Of the draws that are left when sample i is reached, each hits it with
    probability 1 / (N - i): so counts are those of the multinomial, exactly, and nothing is kept of earlier samples.
    """

    def __init__(self, num_samples: int, name: str) -> None:
        """Args: name: decides the draws, with `num_samples` alone."""
        self._left = np.full(REPLICATES, num_samples, np.int64)
        self._num_left = num_samples
        self._random = np.random.Generator(np.random.PCG64(derive_seed(0, "bootstrap", name)))

    def draw(self) -> np.ndarray:
        """Counts of the next sample, (R,) float64."""
        counts = self._random.binomial(self._left, 1.0 / self._num_left)
        self._left -= counts
        self._num_left -= 1
        return counts.astype(np.float64)


@dataclass(frozen=True)
class Summary:
    """One metric of one method over a track."""

    mean: float
    """Over samples and seeds."""
    std: float | None
    """Standard deviation over seeds of the mean over samples: what another seed would change. 0 where nothing is
    drawn; None of one seed, from which it cannot be known."""
    low: float | None
    """2.5 % of the bootstrap's means over samples; None of one sample, from which it cannot be known."""
    high: float | None
    """97.5 %."""

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}


class TrackStatistics:
    """One pass over the samples of a track; memory does not depend on their number.

    Args:
        name: of the track; decides the bootstrap's draws, which all methods and metrics share.
        num_samples: N, all of which must be added.
        methods: name -> S, or 0 where nothing is drawn.
        metrics: names.
    """

    def __init__(self, name: str, num_samples: int, methods: Mapping[str, int], metrics: Sequence[str]) -> None:
        self._num_samples, self._methods, self._metrics = num_samples, dict(methods), tuple(metrics)
        self._resampling = Resampling(num_samples, name)
        self._sums = {m: np.zeros((len(self._metrics), max(1, seeds))) for m, seeds in self._methods.items()}
        self._replicates = {m: np.zeros((len(self._metrics), REPLICATES)) for m in self._methods}

    def add(self, values: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """One sample: method -> metric -> a value for each seed, or one."""
        counts = self._resampling.draw()
        for method, sums in self._sums.items():
            rows = np.array([values[method][metric] for metric in self._metrics], np.float64)
            sums += rows
            self._replicates[method] += rows.mean(axis=1)[:, None] * counts

    def summaries(self) -> dict[str, dict[str, Summary]]:
        """Method -> metric -> summary."""
        return {method: dict(zip(self._metrics, self._of(method), strict=True)) for method in self._methods}

    def _of(self, method: str) -> list[Summary]:
        by_seed = self._sums[method] / self._num_samples
        ends = np.quantile(self._replicates[method] / self._num_samples, _ENDS, axis=1)
        found = []
        for row, low, high in zip(by_seed, *ends, strict=True):
            std: float | None = 0.0
            if self._methods[method]:
                std = float(row.std(ddof=1)) if len(row) > 1 else None
            known = self._num_samples > 1
            found.append(Summary(float(row.mean()), std, float(low) if known else None, float(high) if known else None))
        return found


@dataclass(frozen=True)
class SignTest:
    """Two methods on the same samples: how often each is better."""

    wins: int
    losses: int
    ties: int
    p: float
    """Probability of so uneven a count, or a more uneven one, if either were better with probability 1/2: exact, two
    sides, ties left out; 1 where there are ties alone."""

    @classmethod
    def of(cls, wins: int, losses: int, ties: int) -> "SignTest":
        return cls(wins, losses, ties, binomial_p(wins, losses))

    def to_json(self) -> dict[str, Any]:
        return {"wins": self.wins, "losses": self.losses, "ties": self.ties, "p": self.p}


def binomial_p(wins: int, losses: int) -> float:
    """P(|X - n/2| >= |wins - n/2|) of X ~ Binomial(n, 1/2), n = wins + losses.

    Summed in whole numbers, or of many samples term by term in floats, to about 1e-9 of it.
    """
    n, fewer = wins + losses, min(wins, losses)
    if 2 * fewer == n:
        return 1.0
    if n > _MOST_WHOLE:
        return _binomial_p_in_floats(n, fewer)
    term = total = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    excess = max(0, total.bit_length() - 64)  # digits beyond any float
    return math.ldexp(total >> excess, excess - (n - 1))  # total / 2^(n - 1)


def _binomial_p_in_floats(n: int, fewer: int) -> float:
    """The largest term by its logarithm, the others by their ratio to the one before, until they no longer count."""
    largest = math.lgamma(n + 1) - math.lgamma(fewer + 1) - math.lgamma(n - fewer + 1) - (n - 1) * math.log(2)
    total, ratio, k = 0.0, 1.0, fewer
    while k >= 0 and ratio > 1e-17 * total:
        total += ratio
        ratio *= k / (n - k + 1)
        k -= 1
    return min(1.0, math.exp(largest) * total)
