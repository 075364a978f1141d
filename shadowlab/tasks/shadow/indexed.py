"""A data set over an index without problems: entries are decoded when they are asked for."""

from pathlib import Path

from shadowlab.data import Entry, Index, one_line
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.images import check_image_size
from shadowlab.tasks.shadow.pictures import decode_entry, make_sample
from shadowlab.tasks.shadow.samples import Sample


class IndexedDataset:
    """Random access to samples; safe to fork and to pickle, for it holds no open file.

    Attributes:
        name: for people, the last part of the path or `embedded`.
        ids: sample ids, sorted.
        object_ids: object id of each sample, in the order of `ids`.
        notices: remarks that the caller should print.
    """

    def __init__(self, name: str, path: Path, index: Index, image_size: int) -> None:
        """Args: image_size: S, pixels, a multiple of 8. Raises UserError with the first problem of the index."""
        check_image_size(image_size)
        if index.problems:
            where, others = one_line(str(path)), len(index.problems) - 1
            more = f" (and at least {others} more)" if others else ""
            raise UserError(f"{where}: {index.problems[0]}{more}; for all run: shadowlab data check {where}")
        self.name = name
        self.path = path
        self.image_size = image_size
        self.ids = [entry.id for entry in index.entries]
        self.object_ids = [entry.object_id for entry in index.entries]
        self.notices = list(index.notices)
        self._index = index

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample i, (.., S, S). Raises UserError naming the sample if it cannot be read; there is no substitute."""
        entry = self._index.entries[i]
        pictures, problems = decode_entry(entry)
        if pictures is None:
            where = one_line(str(self.path))
            raise UserError(f"{problems[0]} (sample of {where}; for all problems run: shadowlab data check {where})")
        try:
            return make_sample(entry, pictures, self.image_size)
        except UserError as error:
            raise UserError(f"{one_line(entry.id)}: {error}") from error

    def entry(self, i: int) -> Entry:
        """What the index has of sample i; nothing is decoded."""
        return self._index.entries[i]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the metadata and file sizes, the same wherever the data lie."""
        return self._index.fingerprint()
