"""Where two runs part: the first step and layer whose numbers differ, and the largest differences of a step."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.records import History, LayerTable, Samples
from shadowlab.errors import UserError
from shadowlab.views.terminal.ranking import NO_STATISTICS, TOP, matching, measured_steps
from shadowlab.views.terminal.statistic import PARAMETER, Statistic

RTOL = 1e-4  # by default
_STEPS_AT_ONCE = 512  # of tables that are compared

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
    step = _common_step(main, step)
    column = main.steps.index(step)
    differences = [main.difference(row, column) for row in range(len(main.names)) if main.known[row, column]]
    differences.sort(key=lambda found: -found.relative)  # stable: equals stay in the order of execution
    firsts = [main.first(rtol)]
    steps, only_one, only_other = main.steps, main.only_one, main.only_other
    del main  # one pair at a time: those of two long runs are large
    for kind in () if statistic else IN_ORDER[1:]:
        names = set(kind.names(one)) & set(kind.names(other))
        own = [pattern for pattern in patterns if fnmatch.filter(names, pattern)]  # layers' need not fit parameters
        if names and (own or not patterns):
            firsts.append(_Pair(kind, one, other, own).first(rtol))
    return Comparison(
        steps=steps,
        only_one=only_one,
        only_other=only_other,
        first=min((found for found in firsts if found is not None), key=lambda found: found.step, default=None),
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
        self.measured = (measured_steps(a), measured_steps(b))
        common = set(self.measured[1])
        self.steps = tuple(step for step in self.measured[0] if step in common)
        self._places = {name: place for place, name in enumerate(a.names, start=1)}
        self._one, self._other = (_Aligned(table, self.names, self.steps) for table in (a, b))
        # What noise is does not depend on `patterns`: it is of all names of a step, whichever are looked at.
        everything = [_Aligned(table, both, self.steps) for table in (a, b)] if statistic in _ROUNDED else []
        self.known = torch.zeros(len(self.names), len(self.steps), dtype=torch.bool)
        self.relative = torch.zeros(len(self.names), len(self.steps), dtype=torch.float64)
        for begin in range(0, len(self.steps), _STEPS_AT_ONCE):
            columns = slice(begin, begin + _STEPS_AT_ONCE)
            self.known[:, columns], self.relative[:, columns] = self._compared(columns, everything)

    def _compared(self, columns: slice, everything: "Sequence[_Aligned]") -> tuple[Tensor, Tensor]:
        """`known` and `relative` of some of the steps."""
        (one, one_there), (other, other_there) = self._one.part(columns), self._other.part(columns)
        relative = relative_difference(one, other)
        if everything:
            largest = torch.maximum(*(_sizes(whole.part(columns)[0]) for whole in everything)).amax(dim=0)
            relative[(one - other).abs() <= torch.finfo(torch.float32).eps * largest] = 0.0
        relative[one_there != other_there] = math.inf
        return one_there | other_there, relative

    def difference(self, row: int, column: int) -> Difference:
        name = self.names[row]
        return Difference(
            step=self.steps[column],
            statistic=self.statistic,
            place=self._places[name],
            name=name,
            one=self._one.value(row, column),
            other=self._other.value(row, column),
            relative=float(self.relative[row, column]),
        )

    def first(self, rtol: float) -> Difference | None:
        """The first beyond the tolerance in the order in which a step makes the numbers: gradients come from the last
        layer back."""
        beyond = self.relative > rtol
        columns = beyond.any(0).nonzero().flatten().tolist()
        if not columns:
            return None
        rows = beyond[:, columns[0]].nonzero().flatten().tolist()
        return self.difference(rows[-1] if self.statistic.part == "gradient" else rows[0], columns[0])


class _Aligned:
    """Values and presence of some names and steps of a table."""

    def __init__(self, table: LayerTable, names: Sequence[str], steps: Sequence[int]) -> None:
        rows = {name: row for row, name in enumerate(table.names)}
        columns = {step: column for column, step in enumerate(table.steps)}
        self._table = table
        self._rows = torch.tensor([rows[name] for name in names], dtype=torch.long)
        self._columns = torch.tensor([columns[step] for step in steps], dtype=torch.long)

    def part(self, columns: slice) -> tuple[Tensor, Tensor]:
        place = (self._rows[:, None], self._columns[columns])
        return self._table.values[place], self._table.present[place]

    def value(self, row: int, column: int) -> float | None:
        place = (int(self._rows[row]), int(self._columns[column]))
        return float(self._table.values[place]) if self._table.present[place] else None


def _sizes(values: Tensor) -> Tensor:
    """Magnitudes; 0 for what is not finite."""
    return values.abs().nan_to_num(nan=0.0, posinf=0.0)


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
    (steps, values), (other_steps, other_values) = (_curve(history, key) for history in (one, other))
    common, theirs = torch.isin(steps, other_steps), torch.isin(other_steps, steps)
    beyond = relative_difference(values[common], other_values[theirs]) > rtol
    return int(steps[common][beyond][0]) if bool(beyond.any()) else None


def _curve(history: History, key: str) -> tuple[Tensor, Tensor]:
    """Steps, ascending, and values."""
    places, values = history.points(key)
    return torch.tensor(history.steps(), dtype=torch.int64)[places], values


def _samples_from(one: History, other: History) -> int | None:
    """First step in which both say what they drew, and it is not the same."""
    (steps, counts, begins, own), (*theirs, others) = (_drawn(history) for history in (one, other))
    common, there = torch.isin(steps, theirs[0]), torch.isin(theirs[0], steps)
    steps, counts, begins = steps[common], counts[common], begins[common]
    other_counts, other_begins = theirs[1][there], theirs[2][there]
    differ = counts != other_counts
    number = {name: place for place, name in enumerate(own.ids)}
    known = torch.tensor([number.get(name, -1) for name in others.ids], dtype=torch.int32)
    for begin in range(0, len(steps), _STEPS_AT_ONCE):
        same = (~differ[begin : begin + _STEPS_AT_ONCE]).nonzero().flatten() + begin
        each = counts[same]
        within = torch.arange(int(each.sum())) - torch.repeat_interleave(each.cumsum(0) - each, each)
        mine = own.numbers[torch.repeat_interleave(begins[same], each) + within]
        other_ones = known[others.numbers[torch.repeat_interleave(other_begins[same], each) + within].long()]
        differ[torch.repeat_interleave(same, each)[mine != other_ones]] = True
    return int(steps[differ][0]) if bool(differ.any()) else None


def _drawn(history: History) -> tuple[Tensor, Tensor, Tensor, Samples]:
    """Of the steps that drew samples: steps, how many, where they begin among all; and all."""
    samples = history.samples()
    drew = samples.counts > 0
    begins = samples.counts.cumsum(0) - samples.counts
    steps = torch.tensor(history.steps(), dtype=torch.int64)
    return steps[drew], samples.counts[drew], begins[drew], samples
