"""The layout of a data set of insertions: a CSV file, a row a picture.

    target_image,object_image,mask
    rooms/0001.png,objects/chair.png,masks/0001.png

Paths are relative to the CSV file's folder. `target_image` shows the object where it belongs; `object_image` shows it
alone, in any size; `mask` is grey (mode L), as large as the target, white where the object goes. Further columns are
known: `object` (rows of one object share it; without, those with one object picture do), and in place of the empty
prompt `prompt` (a text) or `prompt_embedding` (a safetensors file with a tensor `prompt_embedding`; all rows or none).
A row's number is its line in the file, the header being 1. Of an entry the second number stands for its text.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shadowlab.data import (
    EntriesWriter,
    Entry,
    FileSource,
    Index,
    Problem,
    Role,
    Source,
    indexed_once,
    one_line,
    plain_size,
    read_file,
)
from shadowlab.errors import UserError

COLUMNS: dict[str, Role] = {"target_image": "target", "object_image": "object", "mask": "mask"}
"""Column that must be there -> role of its picture."""
MORE: dict[str, Role] = {"prompt_embedding": "prompt"}
OBJECT, PROMPT = "object", "prompt"
ROLES: tuple[Role, ...] = (*COLUMNS.values(), *MORE.values())
LAYOUT = "insertion list 1"
_HEADER = ",".join(COLUMNS)


@dataclass(frozen=True)
class Row:
    """One line of the file."""

    number: int
    files: Mapping[Role, PurePosixPath]
    object_name: str | None
    prompt: str | None
    """None: the file has no such column."""


def csv_index(path: Path, *, renew: bool = False) -> Index:
    """As `index_csv`; of a long file the kept index, where it still holds. renew: read the file in any case."""
    return indexed_once(path.parent, f"{LAYOUT} {path.name}", lambda: [path], lambda: index_csv(path), renew=renew)


def index_csv(path: Path) -> Index:
    """All entries of the file with all its faults, a line each that names the row. Pictures are not opened."""
    index, root = Index(), path.parent
    rows = list(_rows(path, index.problems))
    entries = EntriesWriter(root, ROLES)
    seen: dict[tuple[PurePosixPath, ...], int] = {}
    names: dict[str, int] = {}
    told = sum("prompt" in row.files for row in rows)
    for row in rows:
        place = f"row {row.number}"
        triple = tuple(row.files[role] for role in COLUMNS.values() if role in row.files)
        if triple in seen:
            index.problems.append(
                Problem(path.name, f"{place}: the same pictures as row {seen[triple]}; keep one of them")
            )
            continue
        seen[triple] = row.number
        if 0 < told < len(rows) and "prompt" not in row.files:
            index.problems.append(
                Problem(path.name, f"{place}: no prompt_embedding, and {told} other rows have one; fill all or none")
            )
        sources = _sources(root, row, path.name, index.problems)
        if len(sources) == len(row.files):
            name = _name(row.files["target"], names)
            owner = row.object_name or str(row.files["object"])
            text = () if row.prompt is None else (code_of(row.prompt),)
            entries.add(Entry(name, owner, (float(row.number), *text), None, sources))
    index.entries = entries.finish()
    if not rows and not index.problems:
        index.problems.append(Problem(path.name, "empty data set: no row below the header; add some"))
    return index


def prompts_of(path: Path) -> dict[float, str]:
    """The file's texts by their code; empty where it has none, or cannot be read."""
    return {code_of(row.prompt): row.prompt for row in _rows(path, []) if row.prompt is not None}


def code_of(text: str) -> float:
    """A whole number below 2^48 that stands for a text, so that an index of numbers changes with it."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]))


def _name(target: PurePosixPath, names: dict[str, int]) -> str:
    """The target's path without its ending, `/` as `__`; of the second row with one target `..._2`."""
    plain = "__".join(target.with_suffix("").parts)
    names[plain] = names.get(plain, 0) + 1
    return plain if names[plain] == 1 else f"{plain}_{names[plain]}"


def _sources(root: Path, row: Row, file: str, problems: list[Problem]) -> dict[Role, Source]:
    found: dict[Role, Source] = {}
    columns = {role: column for column, role in {**COLUMNS, **MORE}.items()}
    for role, path in row.files.items():
        try:
            found[role] = FileSource(root / path, str(path), plain_size(root, root / path, str(path)))
        except UserError as error:
            problems.append(Problem(file, f"row {row.number}, {columns[role]}: {error}"))
    return found


def _rows(path: Path, problems: list[Problem]) -> Iterator[Row]:
    try:
        text = read_file(path).decode("utf-8-sig")
    except UserError as error:
        problems.append(Problem(path.name, str(error)))
        return
    except UnicodeDecodeError as error:
        problems.append(Problem(path.name, f"not UTF-8 at byte {error.start}; save it as UTF-8"))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if fault := _header_fault(header):
            problems.append(Problem(path.name, fault))
            return
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            found = _row(reader.line_num, header, cells)
            if isinstance(found, str):
                problems.append(Problem(path.name, f"row {reader.line_num}: {found}"))
            else:
                yield found
    except csv.Error as error:
        problems.append(Problem(path.name, f"row {reader.line_num}: not CSV ({error}); quote fields that hold commas"))


def _header_fault(header: list[str]) -> str:
    known = (*COLUMNS, *MORE, PROMPT, OBJECT)
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        has = f"it has {one_line(', '.join(header))}" if any(header) else "the file is empty"
        return f"row 1: no column {', '.join(missing)}; {has}. The first line must be {_HEADER}"
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        return f"row 1: two columns {one_line(twice[0])}; keep one"
    unknown = [name for name in header if name not in known]
    if unknown:
        return f"row 1: unknown column {one_line(unknown[0])!r}; known are {', '.join(known)}"
    if {PROMPT, *MORE} <= set(header):
        return f"row 1: columns {PROMPT} and {', '.join(MORE)}: keep the text or its embedding"
    return ""


def _row(number: int, header: list[str], cells: list[str]) -> Row | str:
    """The row, or what is wrong with it."""
    if len(cells) != len(header):
        return f"{len(cells)} fields, and the header has {len(header)}; quote fields that hold commas"
    values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
    files: dict[Role, PurePosixPath] = {}
    for column, role in {**COLUMNS, **MORE}.items():
        text = values.get(column, "")
        if not text and column in MORE:
            continue
        if not text:
            return f"no {column}; name a file, or take the row out"
        place = PurePosixPath(text)
        if place.is_absolute() or ".." in place.parts or "\\" in text or not text.isprintable():
            return f"{column} {one_line(text)!r} leads out of the CSV file's folder; give a path below it, with /"
        if not (place.suffix and place.stem) or any(part.startswith(".") for part in place.parts):
            return f"{column} {one_line(text)!r} is no file's name that is read; rename it"
        files[role] = place
    return Row(number, files, values.get(OBJECT) or None, values.get(PROMPT))
