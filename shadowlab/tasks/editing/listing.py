"""A data set as a CSV file: a row a sample, files relative to the list.

    input,target,object,gain_red,gain_green,gain_blue                            white-balance
    input,target,mask,object                                                     object-removal
    target,object            or            input,target,object                   paint-to-image

`object` and `track` may be left out, the gains, too: all three or none. A sample's object is the one that is named,
else its target: pictures made of one target stay together in a split. `track` names a part that is judged apart. A
sample's id is its input's path without what all share and without its ending, `/` written as `__`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from shadowlab.data import (
    CsvRow,
    EntriesWriter,
    Entry,
    Index,
    Problem,
    indexed_once,
    listed_pictures,
    read_csv_rows,
)
from shadowlab.tasks.editing.edits import GAINS, Edit

LAYOUT = "editing list 1"
_MOST_GAIN = 1000.0


def columns_of(edit: Edit) -> tuple[str, ...]:
    """That a list may have."""
    return (*edit.roles, "object", "track", *(GAINS if edit.gains else ()))


def list_index(path: Path, edit: Edit, *, renew: bool = False) -> Index:
    """As `index_list`; of a long list the kept index, where it still holds. renew: read the list in any case."""
    name = f"{LAYOUT} {edit.name} {path.name}"
    return indexed_once(path.parent, name, lambda: [path], lambda: index_list(path, edit), renew=renew)


def index_list(path: Path, edit: Edit) -> Index:
    """All entries of the list with all its faults. Pictures are not opened."""
    index, root = Index(), path.parent
    needed = [role for role in edit.roles if role != "input" or not edit.makes_input]
    rows, columns = read_csv_rows(path, columns_of(edit), needed, index.problems)
    lead = "input" if "input" in columns else "target"
    rows = [row for row in rows if _has_lead(row, lead, path.name, index.problems)]
    entries = EntriesWriter(root, edit.roles)
    first: dict[str, CsvRow] = {}
    for row, name in zip(rows, _names([PurePosixPath(row.cells[lead]) for row in rows]), strict=True):
        where = f"{path.name}, line {row.line}"
        if name in first:
            index.problems.append(Problem(name, f"{where}: {_repeated(row, first[name], edit, lead)}"))
            continue
        first[name] = row
        sources = listed_pictures(root, row, edit.roles, where, name, index.problems)
        gains = _gains(row, where, name, index.problems)
        if not name.isprintable() or "\\" in name or name.startswith("."):
            index.problems.append(Problem(name, f"{where}: unsafe name; use printable characters without backslashes"))
        own = row.cells.get("object") or row.cells["target"]
        entries.add(Entry(name, own, gains, row.cells.get("track") or None, sources))
    index.entries = entries.finish()
    return index


def has_inputs(path: Path, edit: Edit) -> bool:
    """Whether the list names inputs. False where it cannot be read."""
    return "input" in read_csv_rows(path, columns_of(edit), ("target",), [])[1]


def _has_lead(row: CsvRow, lead: str, name: str, problems: list[Problem]) -> bool:
    if row.cells[lead]:
        return True
    message = f"line {row.line}: column {lead} is empty; fill it in every row, or leave the column out"
    problems.append(Problem(name, message))
    return False


def _repeated(row: CsvRow, before: CsvRow, edit: Edit, lead: str) -> str:
    if all(row.cells.get(role) == before.cells.get(role) for role in edit.roles):
        return f"the row of line {before.line} again; keep one"
    return f"the {lead} of line {before.line} again, with other files; keep one, or copy the file under another name"


def _gains(row: CsvRow, where: str, name: str, problems: list[Problem]) -> tuple[float, ...] | None:
    texts = [row.cells.get(column, "") for column in GAINS]
    if not any(texts):
        return None
    try:
        found = tuple(float(text) for text in texts)
    except ValueError:
        found = ()
    if len(found) == len(GAINS) and all(math.isfinite(gain) and 0 < gain <= _MOST_GAIN for gain in found):
        return found
    said = ", ".join(text or "nothing" for text in texts)
    problems.append(Problem(name, f"{where}: gains {said}; give three positive numbers, or none of them"))
    return None


def _names(paths: Sequence[PurePosixPath]) -> list[str]:
    """Ids: paths without their common beginning and without their endings; with them where two would be one."""
    common = list(paths[0].parent.parts) if paths else []
    for path in paths:
        parts = path.parent.parts
        same = (i for i, part in enumerate(common) if i >= len(parts) or parts[i] != part)
        common = common[: next(same, len(common))]
    stems = ["__".join(path.with_suffix("").parts[len(common) :]) for path in paths]
    files: dict[str, set[PurePosixPath]] = {}
    for path, stem in zip(paths, stems, strict=True):
        files.setdefault(stem, set()).add(path)
    twins = Counter({stem: len(found) for stem, found in files.items()})
    return [
        "__".join(path.parts[len(common) :]) if twins[stem] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
