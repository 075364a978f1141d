"""A CSV file of requests: a row a file to be written. All that is wrong with it is told at once.

Columns, in any order: object, out; mask; light, theta, phi, size; steps, seed; background, intensity. A value that a
row does not give is the command's. Files are looked for from the list's folder, results go below the folder `out`.
"""

import csv
import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from diagnostics.files import read_text, reason_of
from shadowlab.data import one_line
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.compositing import TRANSPARENT
from shadowlab.tasks.shadow.request import ShadowRequest, Style, make_request

_NEEDED = ("object", "out")
_FILES = ("object", "mask")
_MOST_ROWS = 1_000_000
_MOST_CELL = 4096  # characters


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_COLUMNS: dict[str, Callable[[str], Any]] = {
    "object": str,
    "mask": str,
    "light": str,
    "theta": _number,
    "phi": _number,
    "size": _number,
    "steps": int,
    "seed": int,
    "background": str,
    "intensity": _number,
    "out": str,
}


def read_requests(
    file: Path, out: Path, defaults: Mapping[str, Any], style: Style
) -> tuple[list[ShadowRequest], list[str]]:
    """The requests of a list, or all that is wrong with it, a line each. Pictures are not looked at.

    Args:
        out: folder of the results.
        defaults: of all rows, by the names of the columns; None where not given.

    Raises:
        UserError: it cannot be read, or its first line names no columns of such a list.
    """
    where = one_line(str(file))
    try:
        text = read_text(file)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({reason_of(error)}); give a CSV file") from None
    except ValueError:
        raise UserError(f"{where}: not text in UTF-8; save the list as CSV in UTF-8") from None
    try:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = _header(next(lines, []), where)
        requests: list[ShadowRequest] = []
        problems: list[str] = []
        for number, cells in _rows(lines, where):
            row = f"{where}: line {number}"
            request = _request(cells, columns, row, file.parent, out, defaults, style, problems)
            requests += [] if request is None else [request]
    except csv.Error as error:
        raise UserError(f"{where}: line {lines.line_num}: not CSV ({error}); quote cells with commas in them") from None
    if not requests and not problems:
        raise UserError(f"{where}: no row below the names of the columns; add one for each picture")
    return requests, problems + _repeated(requests)


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and ";" in names[0]:
        raise UserError(f"{where}: its cells are separated by semicolons; save it with commas")
    for name in names:
        if name not in _COLUMNS:
            close = difflib.get_close_matches(name.lower(), list(_COLUMNS), 1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(_COLUMNS)}"
            raise UserError(f"{where}: line 1: no column is called {one_line(name)[:60]!r}; {hint}")
        if names.count(name) > 1:
            raise UserError(f"{where}: line 1: column {name} is there twice; remove one")
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise UserError(f"{where}: line 1: column {missing[0]} is missing; the first line names the columns")
    return names


def _rows(lines: Any, where: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that each ends in; empty lines are passed over."""
    for count, cells in enumerate(lines):
        if count >= _MOST_ROWS:
            raise UserError(f"{where}: more than {_MOST_ROWS:,} rows; split the list")
        if any(cell.strip() for cell in cells):
            yield lines.line_num, [cell.strip() for cell in cells]


def _request(
    cells: list[str],
    columns: list[str],
    row: str,
    folder: Path,
    out: Path,
    defaults: Mapping[str, Any],
    style: Style,
    problems: list[str],
) -> ShadowRequest | None:
    """The request of a row; None where anything is wrong with it."""
    before = len(problems)
    if len(cells) != len(columns):
        problems.append(f"{row}: {len(cells)} cells, the first line has {len(columns)}; quote cells that have commas")
        return None
    values = dict(defaults)
    for column, cell in zip(columns, cells, strict=True):
        if len(cell) > _MOST_CELL:
            problems.append(f"{row}, column {column}: {len(cell):,} characters; a cell has at most {_MOST_CELL:,}")
        elif cell:
            try:
                values[column] = _COLUMNS[column](cell)
            except ValueError:
                kind = "whole number" if _COLUMNS[column] is int else "number"
                problems.append(f"{row}, column {column}: {one_line(cell)[:60]!r} is no {kind}; correct the value")
        elif column in _NEEDED:
            problems.append(f"{row}, column {column}: empty; give a file name")
    if len(problems) > before:
        return None
    if _is_given("light", columns, cells):  # then the command's values are of another light
        values |= {name: None for name in ("theta", "phi", "size") if not _is_given(name, columns, cells)}
    for name in _FILES:
        if _is_given(name, columns, cells):
            values[name] = folder / values[name]
    background = values.get("background")
    if background is not None and _is_given("background", columns, cells) and background != TRANSPARENT:
        neighbour = str(folder / background)
        values["background"] = neighbour if os.path.exists(neighbour) else background
    try:
        values["out"] = out / _inside(values["out"])
        return make_request(values, style, where=row)
    except UserError as error:
        problems.append(placed(row, str(error), {}))
        return None


def placed(row: str, problem: str, named: Mapping[str, object]) -> str:
    """The problem with its row, and with its column where that can be told.

    Args:
        problem: begins with the name of a column or of a file; else the column is not told.
        named: column -> its file.
    """
    files = (column for column, name in named.items() if name is not None and problem.startswith(one_line(str(name))))
    word = re.match(r"\w*", problem)
    column = next(files, word[0] if word is not None and word[0] in _COLUMNS else None)
    return f"{row}: {problem}" if column is None else f"{row}, column {column}: {problem.removeprefix(f'{column}: ')}"


def _is_given(name: str, columns: list[str], cells: list[str]) -> bool:
    return name in columns and bool(cells[columns.index(name)])


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise UserError(f"out = {one_line(name)[:60]!r} leads out of the folder --out; give a name below it")
    return name


def _repeated(requests: list[ShadowRequest]) -> list[str]:
    """Rows whose result another row has, too."""
    first: dict[str, str] = {}
    found = []
    for request in requests:
        key = str(request.out).casefold()
        if key in first:
            line = first[key].rpartition("line ")[2]
            found.append(f"{request.where}, column out: {request.out.name} is written by line {line}, too; rename one")
        first.setdefault(key, request.where)
    return found
