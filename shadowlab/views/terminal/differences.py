"""Where two runs part: the first step and layer whose numbers differ, and the largest differences of a step."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.records import History, LayerTable
from shadowlab.errors import UserError
from shadowlab.views.terminal.ranking import NO_STATISTICS, TOP, matching, measured_steps
from shadowlab.views.terminal.statistic import PARAMETER, Statistic

RTOL = 1e-4  # by default

# In the order in which a step makes them. A norm is a sum of squares: rounding hardly moves it, as it does a mean.
IN_ORDER = (
    Statistic("activation", "norm"),
    Statistic("gradient", "norm"),
    Statistic(PARAMETER, "gradient_norm"),
)
# Sums over a batch that may cancel: what is left of a gradient of 0 is rounding of terms as large as other layers'. An
# activation or a count has no such noise.
_ROUNDED = IN_ORDER[1:]


@dataclass(frozen=True)
class Difference:
    """One number in two runs."""

    step: int
    statistic: Statistic
    place: int
    """From 1, in the order of execution of the first run."""
    name: str
    """Of the layer or parameter."""
    one: float | None
    """In the first run; None where it has none."""
    other: float | None
    """In the second run; None where it has none."""
    relative: float
    """|one - other| over the larger of both sizes, 0 for NaN in both and for noise (see `compare`), inf for NaN, an
    infinity or no number in one of them."""


@dataclass(frozen=True)
class Comparison:
    """Two runs, over the steps that both measured and the names that both have."""

    steps: tuple[int, ...]
    """That were compared."""
    only_one: tuple[str, ...]
    """Names that the second run lacks."""
    only_other: tuple[str, ...]
    """Names that the first run lacks."""
    first: Difference | None
    """The first difference beyond the tolerance, in the order in which a step makes the numbers."""
    statistic: Statistic
    """Of `rows`."""
    step: int
    """Of `rows`."""
    rows: tuple[Difference, ...]
    """The largest differences of this statistic at this step, the largest first."""
    num_compared: int
    """Names with this statistic at this step."""
    num_beyond: int
    """How many of them differ beyond the tolerance."""
    loss_from: int | None
    """First step, measured or not, in which the loss differs beyond the tolerance."""
    learning_rate_from: int | None
    """First step, measured or not, in which the learning rate does."""
    samples_from: int | None
    """First step in which the runs saw different samples."""


def compare(
    one: History,
    other: History,
    *,
    statistic: Statistic | None = None,
    step: int | None = None,
    patterns: Sequence[str] = (),
    top: int = TOP,
    rtol: float = RTOL,
) -> Comparison:
    """Hold two runs against each other.

    Two norms of gradients that are no further apart than float32 resolves next to the largest of that step are equal: a
    gradient that is zero but for rounding has another norm with every number of threads.

    Args:
        statistic: of the differences; None looks for the first one in `IN_ORDER` and lists those of its first.
        step: None for the last that both measured.
        patterns: shell patterns over names; none for all.
        rtol: relative difference up to which two numbers are one.

    Raises:
        UserError: a run has no statistics, no step or layer is in both, or no name matches.
    """
    chosen = statistic or IN_ORDER[0]
    main = _Pair(chosen, one, other, patterns)
    pairs = [main]
    for kind in () if statistic else IN_ORDER[1:]:
        names = set(kind.table(one).names) & set(kind.table(other).names)
        own = [pattern for pattern in patterns if fnmatch.filter(names, pattern)]  # layers' need not fit parameters
        if names and (own or not patterns):
            pairs.append(_Pair(kind, one, other, own))
    step = _common_step(main, step)
    column = main.steps.index(step)
    differences = [main.difference(row, column) for row in range(len(main.names)) if main.known[row, column]]
    differences.sort(key=lambda found: -found.relative)  # stable: equals stay in the order of execution
    return Comparison(
        steps=main.steps,
        only_one=main.only_one,
        only_other=main.only_other,
        first=_first(pairs, rtol),
        statistic=chosen,
        step=step,
        rows=tuple(found for found in differences if found.relative > 0.0)[:top],
        num_compared=len(differences),
        num_beyond=sum(found.relative > rtol for found in differences),
        loss_from=_differs_from("loss", one, other, rtol),
        learning_rate_from=_differs_from("learning_rate", one, other, rtol),
        samples_from=_samples_from(one, other),
    )


def relative_difference(one: Tensor, other: Tensor) -> Tensor:
    """|one - other| / max(|one|, |other|), elementwise: float64 of any shape, the same for both and the result.

    0 for equal values and for NaN in both, inf where one alone is NaN, or an infinity meets another number.
    """
    same = (one == other) | (one.isnan() & other.isnan())
    # Divided first: the difference of two large numbers may overflow.
    size = torch.maximum(one.abs(), other.abs())
    relative = (one / size - other / size).abs()
    relative = torch.where(one.isfinite() & other.isfinite(), relative, math.inf)
    return torch.where(same, 0.0, relative)


class _Pair:
    """One statistic of two runs: the names that match in both, in the order of the first, over the common steps.

    known: (names, steps), whether a run has a number there. relative: the same shape; inf where one alone has.
    """

    def __init__(self, statistic: Statistic, one: History, other: History, patterns: Sequence[str]) -> None:
        self.statistic = statistic
        a, b = statistic.table(one), statistic.table(other)
        for run, table in (("the first run", a), ("the second run", b)):
            if not table.steps:
                raise UserError(f"{run}: {NO_STATISTICS}")
        both = [name for name in a.names if name in set(b.names)]
        if not both:
            raise UserError(f"the runs have no {statistic.noun} in common: they are of different models")
        self.names = tuple(both[row] for row in matching(both, patterns, statistic))
        self.only_one = tuple(name for name in a.names if name not in set(b.names))
        self.only_other = tuple(name for name in b.names if name not in set(a.names))
        self.steps = tuple(step for step in measured_steps(a) if step in set(measured_steps(b)))
        self.measured = (measured_steps(a), measured_steps(b))
        self._places = {name: place for place, name in enumerate(a.names, start=1)}
        self._one, self._one_there = _aligned(a, self.names, self.steps)
        self._other, self._other_there = _aligned(b, self.names, self.steps)
        self.known = self._one_there | self._other_there
        relative = relative_difference(self._one, self._other)
        if statistic in _ROUNDED:
            # Of all names of the step, whichever are looked at: what noise is does not depend on `patterns`.
            everything = (_sizes(_aligned(table, both, self.steps)[0]) for table in (a, b))
            largest = torch.maximum(*everything).amax(dim=0)
            relative[(self._one - self._other).abs() <= torch.finfo(torch.float32).eps * largest] = 0.0
        relative[self._one_there != self._other_there] = math.inf
        self.relative = relative

    def difference(self, row: int, column: int) -> Difference:
        name = self.names[row]
        return Difference(
            step=self.steps[column],
            statistic=self.statistic,
            place=self._places[name],
            name=name,
            one=float(self._one[row, column]) if self._one_there[row, column] else None,
            other=float(self._other[row, column]) if self._other_there[row, column] else None,
            relative=float(self.relative[row, column]),
        )


def _sizes(values: Tensor) -> Tensor:
    """Magnitudes; 0 for what is not finite."""
    return values.abs().nan_to_num(nan=0.0, posinf=0.0)


def _aligned(table: LayerTable, names: Sequence[str], steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Values and presence of these names and steps."""
    places = {name: row for row, name in enumerate(table.names)}
    rows = torch.tensor([places[name] for name in names], dtype=torch.long)
    columns = torch.tensor([table.steps.index(step) for step in steps], dtype=torch.long)
    return table.values[rows][:, columns], table.present[rows][:, columns]


def _first(pairs: Sequence[_Pair], rtol: float) -> Difference | None:
    """By step, then in the order in which the step makes the numbers: gradients come from the last layer back."""
    for step in sorted({step for pair in pairs for step in pair.steps}):
        for pair in pairs:
            if step not in pair.steps:
                continue
            column = pair.steps.index(step)
            rows = (pair.relative[:, column] > rtol).nonzero().flatten().tolist()
            if rows:
                return pair.difference(rows[-1] if pair.statistic.part == "gradient" else rows[0], column)
    return None


def _common_step(pair: _Pair, step: int | None) -> int:
    one, other = pair.measured
    if not pair.steps:
        raise UserError(
            f"no step has {pair.statistic.name} in both runs: the first has {_span(one)}, the second {_span(other)}; "
            "runs with the same diagnostics.statistics_every can be compared"
        )
    if step is None:
        return pair.steps[-1]
    if step not in pair.steps:
        nearest = min(pair.steps, key=lambda candidate: abs(candidate - step))
        raise UserError(
            f"--step {step}: has no {pair.statistic.name} in both runs; the nearest that has is {nearest} "
            f"({_span(pair.steps)})"
        )
    return step


def _span(steps: Sequence[int]) -> str:
    if not steps:
        return "none"
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}"


def _differs_from(key: str, one: History, other: History, rtol: float) -> int | None:
    """First step of both in which this number of the records differs."""
    second = dict(other.curve(key))
    for step, value in one.curve(key):
        if step in second:
            pair = torch.tensor([value, second[step]], dtype=torch.float64)
            if float(relative_difference(pair[0], pair[1])) > rtol:
                return step
    return None


def _samples_from(one: History, other: History) -> int | None:
    second = {record["step"]: record.get("samples") for record in other.records()}
    for record in one.records():
        theirs = second.get(record["step"])
        if theirs is not None and record.get("samples") not in (None, theirs):
            return int(record["step"])
    return None
