"""Layers by one statistic at one step, and one layer over all steps."""

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostics.records import Curve, History, LayerTable
from shadowlab.errors import UserError
from shadowlab.views.terminal.statistic import Statistic

TOP = 15  # by default


@dataclass(frozen=True)
class Row:
    """One layer or parameter."""

    place: int
    """From 1, in the order of execution; of parameters in the order of the model."""
    name: str
    value: float
    """Of the statistic at the step."""
    curve: Curve
    """Of the statistic over all steps."""
    record: Mapping[str, Any]
    """All that the step's record holds of it."""


@dataclass(frozen=True)
class Ranking:
    """Layers or parameters by a statistic at one step."""

    statistic: Statistic
    step: int
    rows: tuple[Row, ...]
    """At most as many as asked for."""
    num_ranked: int
    """How many have a value."""
    absent: tuple[str, ...]
    """Names that were asked for and have none."""


@dataclass(frozen=True)
class Course:
    """A curve in a few numbers; points are (step, value)."""

    first: tuple[int, float]
    last: tuple[int, float]
    lowest: tuple[int, float] | None
    """Of the finite values; None where none is."""
    highest: tuple[int, float] | None
    """Of the finite values; None where none is."""
    num_steps: int
    num_nonfinite: int
    first_nonfinite: int | None
    """The first step whose value is NaN or Inf."""


def rank(
    history: History,
    statistic: Statistic,
    *,
    step: int | None = None,
    patterns: Sequence[str] = (),
    ascending: bool | None = None,
    top: int = TOP,
) -> Ranking:
    """The `top` layers by `statistic`, NaN before all others: it is what one looks for.

    Args:
        step: None for the last that has it.
        patterns: shell patterns over names; none for all.
        ascending: None for what asks for attention first: the smallest headroom, the largest of all else. A mean
            counts by its size.

    Raises:
        UserError: the run, or the step, has no such statistic, or no name matches.
    """
    table = statistic.table(history)
    step = measured_step(table, statistic, step)
    column = table.steps.index(step)
    chosen = matching(table.names, patterns, statistic)
    values, present = table.values[:, column].tolist(), table.present[:, column].tolist()
    ranked = [row for row in chosen if present[row]]
    sign = 1.0 if (statistic.smallest_first if ascending is None else ascending) else -1.0

    def order(row: int) -> tuple[bool, float]:
        value = abs(values[row]) if statistic.key == "mean" else values[row]
        return not math.isnan(value), 0.0 if math.isnan(value) else sign * value

    ranked.sort(key=order)  # stable: equals stay in the order of execution
    held = (history.record_of(step) or {}).get(f"{statistic.noun}s", {})
    rows = [
        Row(row + 1, table.names[row], values[row], table.curve(table.names[row]), held[table.names[row]])
        for row in ranked[:top]
    ]
    absent = tuple(table.names[row] for row in chosen if not present[row])
    return Ranking(statistic, step, tuple(rows), len(ranked), absent)


def summarize(curve: Curve) -> Course:
    """Of a curve with at least one point."""
    points = list(curve)
    finite = [point for point in points if math.isfinite(point[1])]
    bad = [step for step, value in points if not math.isfinite(value)]
    return Course(
        first=points[0],
        last=points[-1],
        lowest=min(finite, key=lambda point: point[1], default=None),
        highest=max(finite, key=lambda point: point[1], default=None),
        num_steps=len(points),
        num_nonfinite=len(bad),
        first_nonfinite=bad[0] if bad else None,
    )


def measured_steps(table: LayerTable) -> list[int]:
    """Those in which at least one layer has the statistic."""
    there = table.present.any(dim=0).tolist()
    return [step for step, has in zip(table.steps, there, strict=True) if has]


def measured_step(table: LayerTable, statistic: Statistic, step: int | None) -> int:
    """`step` if it has the statistic, the last one that has if None.

    Raises:
        UserError: no step has it, or this one has not; names the nearest.
    """
    steps = measured_steps(table)
    if not steps:
        if table.steps:
            raise UserError(f"--by {statistic.name}: no step of this run has it; take another statistic")
        raise UserError(NO_STATISTICS)
    if step is None:
        return steps[-1]
    if step not in steps:
        nearest = min(steps, key=lambda one: abs(one - step))
        raise UserError(
            f"--step {step}: has no {statistic.name}; the nearest that has is {nearest} "
            f"({len(steps)} step{'s' if len(steps) > 1 else ''}, {steps[0]} to {steps[-1]})"
        )
    return step


NO_STATISTICS = (
    "no step has statistics of layers; diagnostics.statistics_every says how often they are recorded, 0 never: run "
    "again with --set diagnostics.statistics_every=10"
)


def matching(names: Sequence[str], patterns: Sequence[str], statistic: Statistic) -> list[int]:
    """Places of the names that match any of the shell patterns; all where there is none.

    Raises:
        UserError: a pattern matches nothing.
    """
    if not patterns:
        return list(range(len(names)))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"--layers {pattern}: matches none of {len(names)} {statistic.noun}s; {_nearest(pattern, names)}"
            )
    return [i for i, name in enumerate(names) if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def find_layer(names: Sequence[str], wanted: str, statistic: Statistic) -> str:
    """The one name that is `wanted`, or that alone matches it as a shell pattern or holds it.

    Raises:
        UserError: none does, or several do.
    """
    if wanted in names:
        return wanted
    found = fnmatch.filter(names, wanted) or [name for name in names if wanted in name]
    if len(found) == 1:
        return found[0]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            f"--over-time {wanted}: means {len(found)} {statistic.noun}s, name one: {', '.join(found[:5])}{more}"
        )
    raise UserError(
        f"--over-time {wanted}: none of {len(names)} {statistic.noun}s of this name; {_nearest(wanted, names)}"
    )


def _nearest(wanted: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted.strip("*"), names, 3, cutoff=0.0)
    return f"the nearest: {', '.join(close)}"
