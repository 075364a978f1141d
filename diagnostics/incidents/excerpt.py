"""A few lines of a source file around the one that a verdict names, kept as text before the file changes."""

import linecache
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import read_text

_AROUND = 6  # lines before and after
_MAX_CHARACTERS = 240  # of a line; generated code has longer ones
_STARTED = time.time()  # of this process, as near as a module can tell


@dataclass(frozen=True)
class SourceExcerpt:
    """Lines of a file as they were when they were read."""

    file: str
    """Path, as the verdict names it."""

    line: int
    """1-based number of the line that is meant."""

    first: int
    """1-based number of `lines[0]`."""

    lines: tuple[str, ...]
    """The line that is meant and up to six before and after it, each cut at 240 characters."""

    is_older: bool = True
    """False where the file was written after the code that ran was loaded, so that lines may have moved."""

    @classmethod
    def read(cls, source: str | None, *, loaded: float = _STARTED, below: Path | None = None) -> "SourceExcerpt | None":
        """The lines around `path:line`, in a notebook's cell too; None where there is no such line.

        Args:
            loaded: Unix time in seconds by which the code was loaded; by default the start of this process.
            below: where `source` comes from a file that anybody may have written, the folder below which alone
                Python's sources are read for it; None for what this process itself ran.
        """
        place = re.fullmatch(r"([^\0]+):(\d{1,9})", source or "")
        if place is None:
            return None
        file, line = place[1], int(place[2])
        text = _lines_of(file) if below is None else _lines_below(below, file)
        if not 1 <= line <= len(text):
            return None
        first = max(line - _AROUND, 1)
        lines = tuple(row.rstrip("\r\n")[:_MAX_CHARACTERS] for row in text[first - 1 : line + _AROUND])
        try:
            is_older = Path(file).stat().st_mtime <= loaded
        except OSError:  # a cell has no file
            is_older = True
        return cls(file, line, first, lines, is_older)

    def is_unchanged(self, below: Path) -> bool | None:
        """Whether the file still has these lines at this place; None where it is not there, or not a Python source
        below the folder `below`, which alone is read."""
        now = SourceExcerpt.read(f"{self.file}:{self.line}", below=below)
        if now is None:
            return False if _lines_below(below, self.file) else None
        return now.lines == self.lines

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "SourceExcerpt":
        """Inverse of `to_json`.

        Raises:
            ValueError: `content` is something else.
        """
        try:
            found = cls(**{**content, "lines": tuple(content["lines"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not an excerpt ({error})") from None
        numbers, texts = (found.line, found.first), (found.file, *found.lines)
        if not all(isinstance(n, int) for n in numbers) or not all(isinstance(t, str) for t in texts):
            raise ValueError("not an excerpt: file and lines are texts, line and first are numbers")
        return found


def _lines_of(file: str) -> Sequence[str]:
    linecache.checkcache(file)
    return linecache.getlines(file)


def _lines_below(folder: Path, file: str) -> Sequence[str]:
    """Lines of a Python source below a folder; none of anything else, of what is hidden (`~/.ssh`) neither."""
    try:
        place = Path(file).resolve()
        names = place.relative_to(folder.resolve()).parts
        is_source = place.suffix == ".py" and not any(name.startswith(".") for name in names)
        return read_text(place).splitlines() if is_source else []
    except (OSError, ValueError, RuntimeError):  # elsewhere, gone, no file, not in UTF-8; a loop of links
        return []
