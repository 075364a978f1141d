"""The results in stages.json as tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadowlab.views.page.wording import plain


@dataclass(frozen=True)
class ListTable:
    """A list of objects in a summary, such as the checks of check-forward."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    failed: frozenset[int] = frozenset()
    """Places of the rows that say `passed: false`."""


@dataclass(frozen=True)
class StageTable:
    """One stage."""

    name: str
    passed: bool
    finished: str
    version: str
    figures: tuple[tuple[str, str], ...]
    """(name, value)."""
    lists: tuple[ListTable, ...]
    error: str
    """What it said when it failed."""

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> "StageTable":
        summary = entry.get("summary")
        figures: list[tuple[str, str]] = []
        lists: list[ListTable] = []
        error = ""
        for key, value in (summary if isinstance(summary, Mapping) else {}).items():
            if key == "error":
                error = str(value)
            elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
                lists.append(_list_table(str(key), value))
            elif isinstance(value, Mapping):
                figures += [(f"{key} {inner}", plain(item)) for inner, item in value.items()]
            else:
                figures.append((str(key), plain(value)))
        finished, version = str(entry.get("finished", "")), str(entry.get("shadowlab_version", ""))
        return cls(name, entry.get("passed") is True, finished, version, tuple(figures), tuple(lists), error)


def _list_table(title: str, rows: list[Mapping[str, Any]]) -> ListTable:
    columns = tuple(dict.fromkeys(str(key) for row in rows for key in row))
    cells = tuple(tuple(plain(row[c]) if c in row else "" for c in columns) for row in rows)
    return ListTable(title, columns, cells, frozenset(i for i, row in enumerate(rows) if row.get("passed") is False))
