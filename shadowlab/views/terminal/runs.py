"""runs: the runs of a folder in a table, the one that was worked at last first."""

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from shadowlab.charts import Curve
from shadowlab.console import Reporter
from shadowlab.runs import RunSummary, list_runs
from shadowlab.views.charts import charts_in, main_numbers

_TITLES = ("name", "stage", "state", "step", "quality", "age", "size")
_WIDTH = 80  # of what is not read on a terminal
_GAP = 2
_LEAST = {"quality": 14, "state": 11, "name": 16, "stage": 9}  # width of what may be wrapped, the first to be so first
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
        reporter.table(_table(found, now, reporter))
    else:
        reporter.say(f"{output_dir}: no run yet; `shadowlab overfit` makes one")
    for one, _, problem in found:
        if problem:
            reporter.warn(f"{one.path.name}: {problem}")
    rows = [_row(one, quality, problem, now) for one, quality, problem in found]
    reporter.result({"output_dir": str(output_dir), "runs": rows})


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
        "name": run.path.name,
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


def _table(found: Sequence[_Found], now: float, reporter: Reporter) -> Table:
    rows = [_cells(one, quality, now) for one, quality, _ in found]
    room = reporter.console.width if reporter.console.is_terminal else _WIDTH
    widths = _widths([max(map(cell_len, column)) for column in zip(_TITLES, *rows, strict=True)], room)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for title, width in zip(_TITLES, widths, strict=True):
        justify: Literal["left", "right"] = "right" if title in ("step", "age", "size") else "left"
        table.add_column(title, width=width, overflow="fold", justify=justify)
    for (one, _, _), cells in zip(found, rows, strict=True):
        style = _STYLES.get(one.state, "red")
        table.add_row(
            *(Text(cell, style if title == "state" else "") for title, cell in zip(_TITLES, cells, strict=True))
        )
    return table


def _cells(run: RunSummary, quality: Sequence[tuple[Curve, float]], now: float) -> tuple[str, ...]:
    numbers = ", ".join(f"{curve.label} {_short(value)}" for curve, value in quality)
    step = "" if run.step is None else str(run.step)
    age = "" if run.last_activity is None else _age(now - run.last_activity)
    return tuple(
        cell or "-" for cell in (run.path.name, run.stage, run.state, step, numbers, age, _size(run.num_bytes))
    )


def _widths(wanted: Sequence[int], room: int) -> list[int]:
    """Of the columns: what they want, or less, so that all fit; words are wrapped before names are."""
    widths = list(wanted)
    for title, least in _LEAST.items():
        column = _TITLES.index(title)
        excess = sum(widths) + _GAP * (len(widths) - 1) - room
        widths[column] -= max(0, min(excess, widths[column] - least))
    return widths


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
