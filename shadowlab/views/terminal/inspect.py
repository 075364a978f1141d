"""inspect: the layers of a run by any statistic at any step, one layer over time, two runs side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import ConsoleOptions
from rich.text import Text

from diagnostics.board import MEANT_HEADROOM_BITS
from diagnostics.records import Curve, History
from shadowlab.console import Column, FittedTable, Reporter, sparkline
from shadowlab.errors import UserError
from shadowlab.plain_text import counted
from shadowlab.runs import RunFolder, read_history
from shadowlab.views.terminal.differences import IN_ORDER, RTOL, Comparison, Difference, compare
from shadowlab.views.terminal.ranking import (
    NO_STATISTICS,
    TOP,
    Course,
    Ranking,
    find_layer,
    measured_steps,
    rank,
    summarize,
)
from shadowlab.views.terminal.statistic import PARAMETER, Statistic, find_statistic

_DEFAULTS = ("activation.headroom_bits", "gradient.norm", "activation.norm")
_SPARK = 16  # columns of a curve in a table
_LONG_SPARK = 60
_NAMED = 5  # of names that are listed in a line
# Next to the chosen one, the most informative first; --json has all.
_LAYER_COLUMNS = ("norm", "max_abs", "headroom_bits", "num_nonfinite", "fraction_zero", "std", "mean")
_PARAMETER_COLUMNS = ("gradient_norm", "update_ratio")
_HEADINGS = {"headroom_bits": "headroom", "num_nonfinite": "nonfinite", "fraction_zero": "zeros"}
_BAD = "bold red"


@dataclass(frozen=True)
class Query:
    """What to show; see `rank` and `compare`. None: not asked for, so that the view takes its own."""

    by: str | None = None
    """Name of a statistic."""
    step: int | None = None
    top: int | None = None
    """How many rows."""
    layers: tuple[str, ...] = ()
    """Shell patterns over names."""
    ascending: bool | None = None
    over_time: str | None = None
    """The one layer to show at all steps."""
    rtol: float | None = None
    """Relative difference up to which two numbers are one."""


def run_inspect(run: RunFolder, against: RunFolder | None, query: Query, reporter: Reporter) -> None:
    """Print what `query` asks for.

    Raises:
        UserError: unknown names, steps without statistics, damaged records, options that exclude each other.
    """
    _check(query, against)
    runs = [_Run.read(folder) for folder in (run, against) if folder is not None]
    names = [one.folder.path.name for one in runs]
    labels = names if len(set(names)) == len(names) else [str(one.folder.path) for one in runs]
    for label, one in zip(labels, runs, strict=True):
        reporter.say(one.about(label), style="bold")
    document: dict[str, Any] = {"run": str(run.path)}
    if against is not None:
        document["against"] = str(against.path)
    if query.over_time is not None:
        found = _over_time(runs, labels, query, reporter)
    elif against is None:
        found = _ranking(runs[0], query, reporter)
    else:
        found = _comparison(runs, labels, query, reporter)
    reporter.result(document | found)


def _check(query: Query, against: RunFolder | None) -> None:
    if query.rtol is not None and (math.isnan(query.rtol) or query.rtol < 0.0):
        raise UserError(f"--rtol {query.rtol}: expected a number of at least 0")
    if query.over_time is not None:
        given = {"--step": query.step, "--layers": query.layers or None, "--ascending": query.ascending}
        for option, value in (given | {"--top": query.top, "--rtol": query.rtol}).items():
            if value is not None:
                raise UserError(f"--over-time shows every step of one layer: leave {option} out")
    if against is None and query.rtol is not None:
        raise UserError("--rtol is for two runs: name the other with --against, or leave --rtol out")
    if against is not None and query.ascending is not None:
        raise UserError("--against lists the largest differences first: leave --ascending and --descending out")


@dataclass(frozen=True)
class _Run:
    folder: RunFolder
    history: History

    @classmethod
    def read(cls, folder: RunFolder) -> "_Run":
        history = read_history(folder.metrics)
        one = cls(folder, history)
        if not history.count():
            raise UserError(f"{folder.metrics}: holds no training step{one.incident()}")
        if not history.layer_names and not history.parameter_names:
            raise UserError(f"{folder.metrics}: {NO_STATISTICS}{one.incident()}")
        return one

    def incident(self) -> str:
        """Words for the last step that met NaN or Inf, if any did."""
        incidents = self.history.records("incident")
        if not incidents:
            return ""
        return f"; step {incidents[-1]['step']} met NaN or Inf: shadowlab why {self.folder.path}"

    def about(self, label: str) -> str:
        history = self.history
        measured = history.measured_steps
        precision = history.header.get("precision")
        return (
            f"{label}: {history.kind}{f' in {precision}' if precision else ''}, {counted(history.count(), 'step')}, "
            f"the last {history.steps()[-1]}, {len(measured)} with statistics ({measured[0]} to {measured[-1]})"
            f"{self.incident()}"
        )


def _default(run: _Run, step: int | None) -> Statistic:
    """The headroom where some layer's says something; in a wide type, of which all have a hundred bits, the gradients'
    norm, and the activations' where no gradient was measured."""
    headroom, gradient, activation = map(find_statistic, _DEFAULTS)
    for statistic in (headroom, gradient):
        table = statistic.table(run.history)
        steps = measured_steps(table)
        column = table.steps.index(step) if step in steps else table.steps.index(steps[-1]) if steps else None
        if column is None:
            continue
        values = table.values[:, column][table.present[:, column]]
        if statistic is gradient or bool((~(values > MEANT_HEADROOM_BITS)).any()):
            return statistic
    return activation if measured_steps(activation.table(run.history)) else headroom


def _ranking(run: _Run, query: Query, reporter: Reporter) -> dict[str, Any]:
    statistic = _default(run, query.step) if query.by is None else find_statistic(query.by)
    found = rank(
        run.history,
        statistic,
        step=query.step,
        patterns=query.layers,
        ascending=query.ascending,
        top=query.top or TOP,
    )
    reporter.table(_ranking_table(found, reporter.console.options))
    if (run.history.record_of(found.step) or {}).get("tripped"):
        reporter.say(
            f"step {found.step} met NaN or Inf: no update was made; measured when it was repeated", style="dim"
        )
    if found.absent:
        reporter.say(
            f"without {statistic.name} at step {found.step}: {_named(found.absent)}{_why_absent(statistic)}",
            style="dim",
        )
    return {
        "statistic": statistic.name,
        "step": found.step,
        "num_ranked": found.num_ranked,
        "absent": list(found.absent),
        "rows": [
            {"place": row.place, "name": row.name, "value": row.value, **row.record, "curve": _points(row.curve)}
            for row in found.rows
        ],
    }


def _why_absent(statistic: Statistic) -> str:
    if statistic.key == "update_ratio":
        return " (no update, or weights of zero)"
    return "" if statistic.part == "activation" else " (no gradient)"


def _ranking_table(found: Ranking, options: ConsoleOptions) -> FittedTable:
    """As many of the other statistics as there is room for."""
    statistic = found.statistic
    own = _PARAMETER_COLUMNS if statistic.part == PARAMETER else _LAYER_COLUMNS
    others = [key for key in own if key != statistic.key]
    shown = f"{len(found.rows)} of {found.num_ranked} {statistic.noun}s" if found.rows else f"no {statistic.noun}"
    table = FittedTable(
        [
            *_place_columns(statistic),
            Column(_HEADINGS.get(statistic.key, statistic.key), is_right=True, style="bold"),
            Column("over time", is_optional=True),
            *(Column(_HEADINGS.get(key, key), is_right=True, is_optional=True) for key in others),
        ],
        title=f"{statistic.name} at step {found.step}, {shown}",
    )
    for row in found.rows:
        measured: Mapping[str, Any] = row.record if statistic.part == PARAMETER else row.record[statistic.part]
        table.add_row(
            str(row.place),
            row.name,
            _number(row.value),
            Text(sparkline(row.curve.values, _SPARK, ascii_only=options.ascii_only), style="cyan"),
            *(_number(measured.get(key)) for key in others),
        )
    return table


def _over_time(runs: Sequence[_Run], labels: Sequence[str], query: Query, reporter: Reporter) -> dict[str, Any]:
    statistic = find_statistic(query.by or _DEFAULTS[0])
    documents = []
    for label, run in zip(labels, runs, strict=True):
        table = statistic.table(run.history)
        name = find_layer(table.names, str(query.over_time), statistic)
        curve = table.curve(name)
        if not curve:
            raise UserError(f"{label}: {name} has no {statistic.name} in any step{_why_absent(statistic)}")
        course = summarize(curve)
        reporter.say(f"{statistic.name} of {name}{f' in {label}' if len(runs) > 1 else ''}")
        width = max(1, min(_LONG_SPARK, reporter.console.width - 2))
        line = sparkline(curve.values, width, ascii_only=reporter.console.options.ascii_only)
        reporter.say(f"  {line}", style="cyan")
        for text in _course_lines(course):
            reporter.say(f"  {text}")
        documents.append({"name": name, **asdict(course), "curve": _points(curve)})
    return {"statistic": statistic.name, "over_time": documents}


def _course_lines(course: Course) -> list[str]:
    def at(point: tuple[int, float] | None) -> str:
        return "none is finite" if point is None else f"{point[1]:.6g} at step {point[0]}"

    bad = f"{course.num_nonfinite} of {course.num_steps} not finite"
    bad += f", the first at step {course.first_nonfinite}" if course.num_nonfinite else ""
    return [
        f"first  {at(course.first)}",
        f"last   {at(course.last)}",
        f"min    {at(course.lowest)}",
        f"max    {at(course.highest)}",
        bad,
    ]


def _comparison(runs: Sequence[_Run], labels: Sequence[str], query: Query, reporter: Reporter) -> dict[str, Any]:
    statistic = None if query.by is None else find_statistic(query.by)
    rtol = RTOL if query.rtol is None else query.rtol
    found = compare(
        runs[0].history,
        runs[1].history,
        statistic=statistic,
        step=query.step,
        patterns=query.layers,
        top=query.top or TOP,
        rtol=rtol,
    )
    for label, names in zip(labels, (found.only_one, found.only_other), strict=True):
        if names:
            reporter.say(f"in {label} alone: {_named(names)}", style="yellow")
    if found.samples_from is not None:
        reporter.say(f"they saw different samples from step {found.samples_from} on", style="yellow")
    compared = statistic.name if statistic else ", ".join(kind.name for kind in IN_ORDER)
    over = f"{counted(len(found.steps), 'step')} that both measured"
    for what, start in (("learning rate", found.learning_rate_from), ("loss", found.loss_from)):
        if start is not None:
            reporter.say(f"the {what} differs from step {start} on", style="yellow")
    if found.first is None:
        reporter.say(f"no difference beyond {rtol:g} (relative) of {compared} over {over}", style="green")
    else:
        first = found.first
        reporter.say(
            f"first difference beyond {rtol:g} (relative) of {compared}, over {over}: step {first.step}, "
            f"{first.statistic.name} of {first.name}: {_plain(first.one)} and {_plain(first.other)} "
            f"({_percent(first.relative)})",
            style="bold",
        )
    if found.rows:
        reporter.table(_comparison_table(found, labels, rtol))
    else:
        reporter.say(
            f"{found.statistic.name} at step {found.step}: {found.num_compared} {found.statistic.noun}s, all equal"
        )
    return {
        "statistic": found.statistic.name,
        "step": found.step,
        "rtol": rtol,
        "steps_compared": list(found.steps),
        "only_in_run": list(found.only_one),
        "only_in_against": list(found.only_other),
        "samples_differ_from_step": found.samples_from,
        "learning_rate_differs_from_step": found.learning_rate_from,
        "loss_differs_from_step": found.loss_from,
        "first_difference": None if found.first is None else _difference_document(found.first),
        "num_compared": found.num_compared,
        "num_beyond": found.num_beyond,
        "largest_differences": [_difference_document(one) for one in found.rows],
    }


def _comparison_table(found: Comparison, labels: Sequence[str], rtol: float) -> FittedTable:
    noun = found.statistic.noun
    differ = f"{found.num_beyond} of {found.num_compared} {noun}s differ beyond {rtol:g}, the largest differences first"
    table = FittedTable(
        [
            *_place_columns(found.statistic),
            *(Column(label, is_right=True) for label in labels),
            Column("relative", is_right=True, style="bold"),
        ],
        title=f"{found.statistic.name} at step {found.step}: {differ}",
    )
    for row in found.rows:
        table.add_row(str(row.place), row.name, _number(row.one), _number(row.other), _percent(row.relative))
    return table


def _place_columns(statistic: Statistic) -> tuple[Column, Column]:
    """Of the place in the order of execution, and of the name."""
    return Column("#", is_head=True, is_right=True, style="dim"), Column(statistic.noun, is_head=True)


def _difference_document(found: Difference) -> dict[str, Any]:
    return asdict(found) | {"statistic": found.statistic.name}


def _points(curve: Curve) -> list[list[float]]:
    return [[step, value] for step, value in curve]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)}: {', '.join(names[:_NAMED])}{more}"


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:.7g}"


def _number(value: float | None) -> Text:
    """4 significant digits; what is not finite stands out, but for the headroom of zeros, which is inf."""
    text = "-" if value is None else f"{value:.4g}"
    return Text(text, style=_BAD if value is not None and (math.isnan(value) or value == -math.inf) else "")


def _percent(relative: float) -> str:
    """At least two digits, however small: a row of a table of differences is none of 0."""
    if math.isinf(relative):
        return "not comparable"
    percent = 100 * relative
    return f"{percent:.2f} %" if percent >= 0.01 else f"{percent:.1e} %"
