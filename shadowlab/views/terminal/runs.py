"""runs: the runs of a folder in a table, the one that was worked at last first."""

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from shadowlab.charts import Curve
from shadowlab.console import Column, FittedTable, Reporter
from shadowlab.runs import REQUIRED, RunSummary, list_runs
from shadowlab.views.charts import charts_in, main_numbers

_TITLES = ("name", "stage", "state", "step", "quality", "age", "size")
_NUMBERS = ("step", "age", "size")
_STYLES = {"passed": "green", "running": "cyan", "interrupted": "yellow", "not a run": "dim", "empty": "dim"}


_Found = tuple[RunSummary, Sequence[tuple[Curve, float]], str]  # with its main numbers and what could not be read


def run_runs(output_dir: Path, reporter: Reporter) -> None:
    """Print the table.

    Raises:
        UserError: as `list_runs`.
    """
    found: list[_Found] = [(one, *_quality(one)) for one in list_runs(output_dir)]
    now = time.time()
    if found:
        reporter.table(_table(found, now))
    else:
        reporter.say(f"{output_dir}: no run yet; `shadowlab overfit` makes one")
    for one, _, problem in found:
        if problem:
            reporter.warn(f"{_name(one)}: {problem}")
    rows = [_row(one, quality, problem, now) for one, quality, problem in found]
    reporter.result({"output_dir": str(output_dir), "runs": rows})


def _name(run: RunSummary) -> str:
    """What other commands call it by: the folder's name, or its way from the training that it lies in."""
    is_before = run.path.parent.name == REQUIRED
    return "/".join(run.path.parts[-3:]) if is_before else run.path.name


def _quality(run: RunSummary) -> tuple[list[tuple[Curve, float]], str]:
    """The main numbers of the last evaluation, and what could not be read of the run."""
    try:
        charts, problem = charts_in(run.header), run.problem
    except ValueError as error:
        charts, problem = None, str(error)
    return main_numbers(charts, run.evaluation), problem


def _row(run: RunSummary, quality: Sequence[tuple[Curve, float]], problem: str, now: float) -> dict[str, Any]:
    active = run.last_activity
    return {
        "name": _name(run),
        "run": str(run.path),
        "stage": run.stage or None,
        "state": run.state,
        "step": run.step,
        "quality": {curve.key: value for curve, value in quality},
        "last_activity": None if active is None else datetime.fromtimestamp(active, UTC).isoformat(timespec="seconds"),
        "age_seconds": None if active is None else max(0, round(now - active)),
        "bytes": run.num_bytes,
        "problem": problem or None,
    }


def _table(found: Sequence[_Found], now: float) -> FittedTable:
    table = FittedTable(
        [
            Column(
                title,
                is_head=title == "name",
                is_right=title in _NUMBERS,
                card_title="step" if title == "step" else "",
            )
            for title in _TITLES
        ]
    )
    for one, quality, _ in found:
        style = _STYLES.get(one.state, "red")
        cells = zip(_TITLES, _cells(one, quality, now), strict=True)
        table.add_row(*(Text(cell, style if title == "state" else "") for title, cell in cells))
    return table


def _cells(run: RunSummary, quality: Sequence[tuple[Curve, float]], now: float) -> tuple[str, ...]:
    numbers = ", ".join(f"{curve.label} {_short(value)}" for curve, value in quality)
    step = "" if run.step is None else str(run.step)
    age = "" if run.last_activity is None else _age(now - run.last_activity)
    return tuple(cell or "-" for cell in (_name(run), run.stage, run.state, step, numbers, age, _size(run.num_bytes)))


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"


def _age(seconds: float) -> str:
    """Of one unit: `3 h`."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _size(num_bytes: int) -> str:
    """Three digits at most: `1.2 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.{0 if num_bytes >= 10 * factor else 1}f} {unit}"
    return f"{num_bytes} B"
