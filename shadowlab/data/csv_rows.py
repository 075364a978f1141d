"""A CSV file that lists the samples of a data set, read strictly: every fault is listed, none is repaired."""

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shadowlab.data.picture_folder import plain_size
from shadowlab.data.sources import FileSource, Problem, Role, Source, one_line, read_file
from shadowlab.errors import UserError

_MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class CsvRow:
    """A row below the first, which names the columns."""

    line: int
    """Its number in the file, from 1; of a row over several lines, that of the last."""
    cells: dict[str, str]
    """Column -> text without spaces around it; columns that the file lacks are absent."""


def read_csv_rows(
    path: Path, columns: Sequence[str], needed: Sequence[str], problems: list[Problem]
) -> tuple[list[CsvRow], list[str]]:
    """The rows of a list, and the columns that it has; each fault is added to `problems`.

    Args:
        columns: that it may have.
        needed: of these, the ones that it must have, and that no row may leave empty.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
        names, rows = _parsed(text, columns, needed)
    except UserError as error:
        problems.append(Problem(path.name, str(error)))
        return [], []
    except UnicodeDecodeError as error:
        problems.append(Problem(path.name, f"not UTF-8 at byte {error.start}; save it as CSV in UTF-8"))
        return [], []
    found = []
    for row in rows:
        empty = next((name for name in needed if not row.cells[name]), None)
        if empty is not None:
            problems.append(Problem(path.name, f"line {row.line}: column {empty} is empty; fill it, or remove the row"))
            continue
        found.append(row)
    if not rows:
        problems.append(Problem(path.name, "no row below the names of the columns; add one for each sample"))
    return found, names


def _parsed(text: str, columns: Sequence[str], needed: Sequence[str]) -> tuple[list[str], list[CsvRow]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = _header(next(lines, []), columns, needed)
        rows: list[CsvRow] = []
        for cells in lines:
            if len(rows) >= _MOST_ROWS:
                raise UserError(f"more than {_MOST_ROWS:,} rows; split the list")
            if any(cell.strip() for cell in cells):
                if len(cells) != len(names):
                    raise UserError(
                        f"line {lines.line_num}: {len(cells)} cells for {len(names)} columns; quote cells with commas "
                        "in them"
                    )
                texts = (cell.strip() for cell in cells)
                rows.append(CsvRow(lines.line_num, dict(zip(names, texts, strict=True))))
    except csv.Error as error:
        raise UserError(f"line {lines.line_num}: not CSV ({error}); quote cells with commas in them") from None
    return names, rows


def _header(cells: list[str], columns: Sequence[str], needed: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and ";" in names[0]:
        raise UserError("its cells are separated by semicolons; save it with commas")
    for name in names:
        if name not in columns:
            close = difflib.get_close_matches(name.lower(), columns, 1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(columns)}"
            raise UserError(f"line 1: no column is called {one_line(name)[:60]!r}; {hint}")
        if names.count(name) > 1:
            raise UserError(f"line 1: column {name} is there twice; remove one")
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(f"line 1: column {missing[0]} is missing; the first line names the columns: {','.join(needed)}")
    return names


def listed_pictures(
    root: Path, row: CsvRow, roles: Sequence[Role], where: str, sample: str, problems: list[Problem]
) -> dict[Role, Source]:
    """The files that a row names in the columns of these roles; each fault is added to `problems`.

    Args:
        root: folder of the list: paths are relative to it, and lead out of it nowhere.
        where: of the row, for messages.
        sample: its id.
    """
    found: dict[Role, Source] = {}
    for role in roles:
        text = row.cells.get(role, "")
        if not text:
            continue
        path = PurePosixPath(text)
        try:
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{one_line(text)} leads out of the list's folder; put the list above its files")
            found[role] = FileSource(root / path, str(path), plain_size(root, root / path, str(path)))
        except UserError as error:
            problems.append(Problem(sample, f"{where}: {role}: {error}"))
    return found
