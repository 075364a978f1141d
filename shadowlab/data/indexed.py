"""A data set over an index without problems: entries are decoded when they are asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from shadowlab.data.index import Index
from shadowlab.data.resizing import check_image_size
from shadowlab.data.sources import Entry, Problem, one_line
from shadowlab.errors import UserError

S = TypeVar("S")
Read = Callable[[Entry, int], tuple[S | None, list[Problem]]]
"""(entry, image size) -> its sample, or None and all that is wrong with it; a function of a module, to be pickled."""


class IndexedDataset(Generic[S]):
    """Random access to samples; safe to fork and to pickle, for it holds no open file.

    Attributes:
        name: for people, the last part of the path or `embedded`.
        ids: sample ids, sorted.
        object_ids: object id of each sample, in the order of `ids`.
        notices: remarks that the caller should print.
    """

    def __init__(self, name: str, path: Path, index: Index, image_size: int, read: Read[S]) -> None:
        """Args: image_size: pixels, a multiple of 8. Raises UserError with the first problem of the index."""
        check_image_size(image_size)
        if index.problems:
            where, others = one_line(str(path)), len(index.problems) - 1
            more = f" (and at least {others} more)" if others else ""
            raise UserError(f"{where}: {index.problems[0]}{more}; for all run: shadowlab data check {where}")
        self.name = name
        self.path = path
        self.image_size = image_size
        self.ids: Sequence[str] = index.entries.ids
        self.object_ids: Sequence[str] = index.entries.object_ids
        self.notices = [*index.notices, *index.remarks]
        self._index, self._read = index, read

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> S:
        """Sample i, pictures (.., S, S). Raises UserError naming it if it cannot be read; there is no substitute."""
        entry = self.entry(i)
        try:
            sample, problems = self._read(entry, self.image_size)
        except UserError as error:
            raise UserError(f"{one_line(entry.id)}: {error}") from error
        if sample is None:
            where = one_line(str(self.path))
            raise UserError(f"{problems[0]} (sample of {where}; for all problems run: shadowlab data check {where})")
        return sample

    def entry(self, i: int) -> Entry:
        """What the index has of sample i; nothing is decoded."""
        return self._index.entries[i]

    def place_of(self, i: int) -> str:
        """Of sample i, for people: its id, or where a list names it."""
        return self.ids[i]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the metadata and file sizes, the same wherever the data lie."""
        return self._index.fingerprint()
