"""Curves of a run as SVG: few points, no loss of an extreme, and every NaN or Inf marked."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diagnostics.records import Curve, History
from shadowlab.plain_text import counted
from shadowlab.views.charts import Line as PlotLine
from shadowlab.views.charts import Plot
from shadowlab.views.page.axis import Axis
from shadowlab.views.page.sessions import resumed_sessions
from shadowlab.views.page.wording import number

_MAX_BUCKETS = 300  # of a curve; each keeps its smallest and its largest value
_MAX_EVENTS = 60  # marks of a panel
_FEW = 40  # values that are not smoothed
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
    summary: str = ""
    """The line in words, for those who do not see it."""
    mean: Curve | None = None
    """The running mean, where that is drawn."""

    @classmethod
    def of(
        cls, name: str, curve: Curve, style: str, excused: frozenset[int] = frozenset(), *, is_smoothed: bool = False
    ) -> "Series":
        """Of a whole curve, of which as much is kept as can be seen."""
        mean = smoothed(curve) if is_smoothed else curve
        return cls(
            name,
            decimated(curve, excused=excused),
            style,
            excused,
            _in_words(name, curve, excused),
            None if mean is curve else mean,
        )


def _in_words(name: str, curve: Curve, excused: frozenset[int]) -> str:
    values = torch.tensor(curve.values, dtype=torch.float64)
    fine = values.isfinite()
    bad = [step for step in (curve.steps[i] for i in (~fine).nonzero().flatten().tolist()) if step not in excused]
    lost = f"; {counted(len(bad), 'value')} NaN or Inf, first at step {bad[0]}" if bad else ""
    finite = fine.nonzero().flatten()
    if num_excused := len(curve) - len(finite) - len(bad):
        lost += f"; NaN or Inf in {counted(num_excused, 'skipped step')}"
    if not len(finite):
        return f"{name}: no finite value{lost}"
    own = values[finite]
    first, last = int(finite[0]), int(finite[-1])
    low, high = int(finite[own == own.min()][0]), int(finite[own == own.max()][-1])
    if len(finite) == 1:
        return f"{name}: {_at(curve, low)} at step {curve.steps[low]}{lost}"
    ends = f"lowest {_at(curve, low)} (step {curve.steps[low]}), highest {_at(curve, high)} (step {curve.steps[high]})"
    return f"{name}: {_at(curve, first)} at first, {_at(curve, last)} at step {curve.steps[last]}; {ends}{lost}"


def _at(curve: Curve, place: int) -> str:
    return number(curve.values[place])


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
    """(step, `mark`, `bad` or `resumed`, words) of events."""
    is_smoothed: bool = False
    """Whether each line is drawn as its running mean, its points faintly behind."""

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
    faint: str = ""
    """An SVG path of dots: the points of which the line is the running mean."""


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
    """(pixel, `mark`, `bad` or `resumed`, words) of NaN, Inf and marks."""
    is_log: bool
    """Whether the vertical axis is."""

    @property
    def is_smooth(self) -> bool:
        """Whether a line is a running mean."""
        return any(line.faint for line in self.lines)

    data: dict[str, Any]
    """For the script that reads values out."""


def decimated(curve: Curve, buckets: int = _MAX_BUCKETS, excused: Collection[int] = ()) -> Curve:
    """At most two finite values of each bucket of neighbours, its smallest and its largest; besides, the first of every
    run of NaN and Inf, and of every run of those that are not excused; of these one a bucket where there are many.

    Args:
        buckets: how many there are.
        excused: steps whose NaN or Inf is no fault.
    """
    if len(curve) <= 2 * buckets:
        return curve
    values = torch.tensor(curve.values, dtype=torch.float64)
    edges = torch.arange(buckets + 1) * len(values) // buckets
    bucket = torch.repeat_interleave(torch.arange(buckets), edges.diff())
    fine = values.isfinite()
    kept = {0, len(values) - 1}
    for sound in (fine, fine | torch.tensor([step in excused for step in curve.steps])):
        begins = (~sound[1:] & sound[:-1]).nonzero().flatten() + 1
        if len(begins) > buckets:
            begins = begins[torch.cat([torch.ones(1, dtype=torch.bool), bucket[begins].diff() > 0])]
        kept |= set(begins.tolist())
    for sign in (1.0, -1.0):
        least = (sign * values).masked_fill(~fine, math.inf)
        lowest = torch.full((buckets,), math.inf, dtype=torch.float64).scatter_reduce(0, bucket, least, "amin")
        there = (fine & (least == lowest[bucket])).nonzero().flatten()
        kept |= set(
            there[torch.cat([torch.ones(1, dtype=torch.bool), bucket[there].diff() > 0])[: len(there)]].tolist()
        )
    chosen = sorted(kept)
    return Curve(tuple(curve.steps[i] for i in chosen), tuple(curve.values[i] for i in chosen))


def smoothed(curve: Curve) -> Curve:
    """Means of the finite values around each step, over a twentieth of all; as many points as `decimated` leaves.

    The curve itself where it has fewer than `_FEW` finite values.
    """
    points = [(step, value) for step, value in curve if math.isfinite(value)]
    if len(points) < _FEW:
        return curve
    half = max(1, len(points) // 40)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found = []
    for i in range(0, len(points), max(1, len(points) // _MAX_BUCKETS)):
        first, last = max(0, i - half), min(len(points), i + half + 1)
        found.append((points[i][0], (sums[last] - sums[first]) / (last - first)))
    return Curve(tuple(step for step, _ in found), tuple(value for _, value in found))


def draw(panel: Panel, first: int, last: int) -> Drawing:
    """A panel in pixels.

    Args:
        first: step at the left end of the axis, which all panels share.
        last: step at its right end.
    """
    small = panel.series
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
        tuple(_line(one, x, y) if one.mean is None else _smooth_line(one, one.mean, x, y) for one in small),
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
    steps = zip(history.steps(), history.skipped().tolist(), strict=True)
    skips = [(step, "mark", "the gradient scaler skipped it") for step, is_skipped in steps if is_skipped]
    marks = (*skips, *((step, "bad", "incident") for step in history.steps("incident")))
    sessions = resumed_sessions(history.headers, history.kind)
    resumed = tuple((one.resumed_at, "resumed", one.text) for one in sessions if one.resumed_at is not None)
    skipped = frozenset(step for step, _, _ in skips)
    found = []
    for plot in wanted:
        lines = [one for line in plot.lines for one in line.among(_keys(history, line))]
        series = []
        for number_, line in enumerate(lines):
            curve = history.curve(line.key, line.kind)
            excused = skipped if line.key.startswith("grad_norm") else frozenset[int]()
            if len(curve):
                style = f"s{number_ % _STYLES}"
                series.append(Series.of(line.label, curve, style, excused, is_smoothed=plot.is_smoothed))
        if series:
            events = (*resumed, *(marks if plot.has_marks else ()))
            found.append(Panel(plot.name, plot.title, tuple(series), plot.unit, events, plot.is_smoothed))
    return found


def _keys(history: History, line: PlotLine) -> set[str]:
    """Names of the records' numbers, where a line asks for all that begin alike."""
    if not line.key.endswith("*"):
        return set()
    outer, dot, _ = line.key.partition(".")
    if not dot:
        return set(history.keys(line.kind))
    return {f"{outer}.{key}" for key in history.keys(line.kind, within=outer)}


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


def _smooth_line(series: Series, mean: Curve, x: Axis, y: Axis) -> Line:
    """The running mean as the line, the points behind it."""
    points = (point for point in series.curve if math.isfinite(point[1]))
    path = "".join(f"M{x.place(step):.0f} {y.place(value):.0f}h0" for step, value in points)
    return replace(_line(replace(series, curve=mean), x, y), dots=(), faint=path)


def _thinned(events: Sequence[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """About `_MAX_EVENTS` of each sign at most, the first always among them."""
    found: list[tuple[int, str, str]] = []
    for sign in ("resumed", "mark", "bad"):
        own = [event for event in events if event[1] == sign]
        found += own[:: max(1, math.ceil(len(own) / _MAX_EVENTS))]
    return found


def _short(value: float) -> float | str:
    """For the script: five digits; NaN and Inf, which JSON does not know, as words."""
    return float(f"{value:.5g}") if math.isfinite(value) else number(value)
