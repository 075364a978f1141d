"""Cases by their names, and tables in plain text: what the reports of several corpora share."""

import difflib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from shadowlab.errors import UserError


class Named(Protocol):
    """What has a name of its own."""

    @property
    def name(self) -> str: ...


Case = TypeVar("Case", bound=Named)


def chosen(cases: Sequence[Case], names: Sequence[str] | None, kind: str) -> list[Case]:
    """Cases of these names in their order, all by default.

    Args:
        kind: what one is called in a message, such as `fault`.

    Raises:
        UserError: no case has such a name.
    """
    by_name = {case.name: case for case in cases}
    for name in names or ():
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=3, cutoff=0.4)
            known = f"close: {', '.join(close)}" if close else f"--json without --only names all {len(by_name)}"
            raise UserError(f"no {kind} is called {name!r}; {known}")
    return list(cases) if names is None else [by_name[name] for name in names]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, left-aligned, with a line below the head."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
