"""Curves of a run as SVG: few points, no loss of an extreme, and every NaN or Inf marked."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diagnostics.records import Curve, History
from shadowlab.views.charts import Line as PlotLine
from shadowlab.views.charts import Plot
from shadowlab.views.page.axis import Axis
from shadowlab.views.page.wording import count, number

_MAX_BUCKETS = 300  # of a curve; each keeps its smallest and its largest value
_MAX_EVENTS = 60  # marks of a panel
_STYLES = 5  # that report.css has
WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 546, 16, 216


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    name: str
    """In the legend."""
    curve: Curve
    style: str = "s0"
    """Its colour and dashes in report.css, s0 to s4."""
    excused: frozenset[int] = frozenset()
    """Steps whose NaN or Inf is no fault."""

    @property
    def summary(self) -> str:
        """The line in words, for those who do not see it."""
        finite = [(value, step) for step, value in self.curve if math.isfinite(value)]
        bad = [step for step, value in self.curve if not math.isfinite(value) and step not in self.excused]
        lost = f"; {count(len(bad), 'value')} NaN or Inf, first at step {bad[0]}" if bad else ""
        if num_excused := len(self.curve) - len(finite) - len(bad):
            lost += f"; NaN or Inf in {count(num_excused, 'skipped step')}"
        if not finite:
            return f"{self.name}: no finite value{lost}"
        low, high = min(finite), max(finite)
        if len(finite) == 1:
            return f"{self.name}: {number(low[0])} at step {low[1]}{lost}"
        return (
            f"{self.name}: {number(finite[0][0])} at first, {number(finite[-1][0])} at step {finite[-1][1]}; "
            f"lowest {number(low[0])} (step {low[1]}), highest {number(high[0])} (step {high[1]}){lost}"
        )


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes."""

    key: str
    """Of its plot: letters, digits and hyphens."""
    title: str
    series: tuple[Series, ...]
    unit: str = ""
    """Of its vertical axis."""
    marks: tuple[tuple[int, str, str], ...] = ()
    """(step, `mark` or `bad`, words) of events."""

    @property
    def summary(self) -> str:
        return f"{self.title}. " + ". ".join(one.summary for one in self.series) + "."


@dataclass(frozen=True)
class Line:
    """A drawn series."""

    name: str
    style: str
    pieces: tuple[str, ...]
    """Between gaps, as SVG points."""
    dots: tuple[tuple[float, float], ...]
    """Points with a dot, in pixels: single ones, and all where they are few."""


@dataclass(frozen=True)
class Drawing:
    """A panel in pixels."""

    panel: Panel
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    """(pixel, label)."""
    y_ticks: tuple[tuple[float, str], ...]
    """(pixel, label)."""
    events: tuple[tuple[float, str, str], ...]
    """(pixel, `mark` or `bad`, words) of NaN, Inf and marks."""
    is_log: bool
    """Whether the vertical axis is."""
    data: dict[str, Any]
    """For the script that reads values out."""


def decimated(curve: Curve, buckets: int = _MAX_BUCKETS, excused: Collection[int] = ()) -> Curve:
    """At most two finite values of each bucket of neighbours, its smallest and its largest; besides, the first of every
    run of NaN and Inf, and of every run of those that are not excused.

    Args:
        buckets: how many there are.
        excused: steps whose NaN or Inf is no fault.
    """
    if len(curve) <= 2 * buckets:
        return curve
    points, values = list(curve), curve.values
    kept = {0, len(points) - 1}
    fine = [math.isfinite(v) for v in values]
    for sound in (fine, [ok or step in excused for ok, step in zip(fine, curve.steps, strict=True)]):
        kept |= {i for i, ok in enumerate(sound) if not ok and (i == 0 or sound[i - 1])}
    for number_ in range(buckets):
        span = range(number_ * len(points) // buckets, (number_ + 1) * len(points) // buckets)
        finite = [i for i in span if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    chosen = [points[i] for i in sorted(kept)]
    return Curve(tuple(step for step, _ in chosen), tuple(value for _, value in chosen))


def draw(panel: Panel, first: int, last: int) -> Drawing:
    """A panel in pixels.

    Args:
        first: step at the left end of the axis, which all panels share.
        last: step at its right end.
    """
    small = [replace(one, curve=decimated(one.curve, excused=one.excused)) for one in panel.series]
    x = Axis.of_steps(first, last, _LEFT, _RIGHT)
    y = Axis.over((value for one in small for value in one.curve.values), _BOTTOM, _TOP)
    events = list(panel.marks)
    for one in small:
        for step, value in one.curve:
            if not math.isfinite(value) and step not in one.excused:
                events.append((step, "bad", f"{one.name} is {number(value)}"))
    shown = _thinned(sorted(set(events)))
    return Drawing(
        panel,
        tuple(_line(one, x, y) for one in small),
        tuple((round(at, 1), text) for at, text in x.ticks(whole=True)),
        tuple((round(at, 1), text) for at, text in y.ticks()),
        tuple((round(x.place(step), 1), sign, f"step {step}: {words}") for step, sign, words in shown),
        y.is_log,
        {
            "x": [x.low, x.high, _LEFT, _RIGHT],
            "series": [
                {"name": one.name, "steps": list(one.curve.steps), "values": [_short(v) for v in one.curve.values]}
                for one in small
            ],
        },
    )


def panels(history: History, wanted: Sequence[Plot]) -> list[Panel]:
    """The plots with the run's numbers; those without a point are left out."""
    skips = [(r["step"], "mark", "the gradient scaler skipped it") for r in history.records() if r.get("skipped")]
    marks = (*skips, *((r["step"], "bad", "incident") for r in history.records("incident")))
    skipped = frozenset(step for step, _, _ in skips)
    found = []
    for plot in wanted:
        lines = [one for line in plot.lines for one in line.among(_keys(history, line))]
        series = []
        for number_, line in enumerate(lines):
            curve = history.curve(line.key, line.kind)
            excused = skipped if line.key.startswith("grad_norm") else frozenset[int]()
            if len(curve):
                series.append(Series(line.label, curve, f"s{number_ % _STYLES}", excused))
        if series:
            found.append(Panel(plot.name, plot.title, tuple(series), plot.unit, marks if plot.has_marks else ()))
    return found


def _keys(history: History, line: PlotLine) -> set[str]:
    """Names of the records' numbers, where a line asks for all that begin alike."""
    if not line.key.endswith("*"):
        return set()
    records: Sequence[Mapping[str, Any]] = history.records(line.kind)
    outer, dot, _ = line.key.partition(".")
    if not dot:
        return {key for record in records for key in record}
    return {f"{outer}.{key}" for record in records for key in record.get(outer) or ()}


def drawings(history: History, wanted: Sequence[Plot]) -> list[Drawing]:
    """`panels`, drawn over the same steps."""
    found = panels(history, wanted)
    steps = [step for panel in found for one in panel.series for step in (one.curve.steps[0], one.curve.steps[-1])]
    steps += [step for panel in found for step, _, _ in panel.marks]
    return [draw(panel, min(steps), max(steps)) for panel in found]


def _line(series: Series, x: Axis, y: Axis) -> Line:
    pieces: list[list[tuple[float, float]]] = [[]]
    for step, value in series.curve:
        if math.isfinite(value):
            pieces[-1].append((round(x.place(step), 1), round(y.place(value), 1)))
        elif pieces[-1]:
            pieces.append([])
    lines = tuple(" ".join(f"{a:g},{b:g}" for a, b in piece) for piece in pieces if len(piece) > 1)
    few = len(series.curve) <= 40
    dots = tuple(point for piece in pieces for point in piece if few or len(piece) == 1)
    return Line(series.name, series.style, lines, dots)


def _thinned(events: Sequence[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """About `_MAX_EVENTS` of each sign at most, the first always among them."""
    found: list[tuple[int, str, str]] = []
    for sign in ("mark", "bad"):
        own = [event for event in events if event[1] == sign]
        found += own[:: max(1, math.ceil(len(own) / _MAX_EVENTS))]
    return found


def _short(value: float) -> float | str:
    """For the script: five digits; NaN and Inf, which JSON does not know, as words."""
    return float(f"{value:.5g}") if math.isfinite(value) else number(value)
