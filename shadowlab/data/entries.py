"""The entries of a data set as columns: 100 bytes a sample in place of 3 KiB. An `Entry` is made when it is asked for.

Legend: N samples, K numbers of each one's metadata.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from shadowlab.data.column_files import Arrays
from shadowlab.data.sources import Entry, FileSource, Role, SliceSource, Source
from shadowlab.data.texts import Coded, Coder, Texts

_ABSENT = -1
_LARGEST = 2**63 - 1  # what a crafted header says may be more; nothing of that size is read


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Where the pictures of one role lie.

    A name mostly holds the sample's id (`objects/ID.png`), so that what is around it is the same for all.
    """

    around: np.ndarray
    """(N,) int32: which of `before`, `holds_id` and `after`; -1 where the sample has no such picture."""
    sizes: np.ndarray
    """(N,) int64, bytes."""
    archives: np.ndarray
    """(N,) int32: which of the archives it lies in; -1: it is a file of its own."""
    offsets: np.ndarray
    """(N,) int64: of its bytes in the archive."""


@dataclass(frozen=True, eq=False)
class _Names:
    """What stands around the ids in the names of pictures."""

    before: Texts
    holds_id: np.ndarray
    """bool: whether the id stands between the two; else `before` is the whole name."""
    after: Texts


class Entries(Sequence[Entry]):
    """The samples of a data set, sorted by id; safe to fork and to pickle.

    Attributes:
        root: the folder or file that holds them.
        ids: sample ids, unique, sorted.
        object_ids: object id of each sample.
    """

    def __init__(self, root: Path, roles: Sequence[Role], arrays: Mapping[str, np.ndarray]) -> None:
        """Args: arrays: as `arrays()` gives them. Raises ValueError where they are not those of such a sequence."""
        self.root, self.roles = root, tuple(roles)
        self.ids = _texts(arrays, "ids")
        count = len(self.ids)
        self.object_ids = Coded(_texts(arrays, "objects"), _column(arrays, "object_of", np.int32, count))
        self._tracks, self._track_of = _texts(arrays, "tracks"), _column(arrays, "track_of", np.int32, count)
        self._values = _column(arrays, "values", np.float64, count, dimensions=2)
        self._has_values = _column(arrays, "has_values", np.bool_, count)
        before, after = _texts(arrays, "before"), _texts(arrays, "after")
        self._names = _Names(before, _column(arrays, "holds_id", np.bool_, len(before)), after)
        self._archives = _texts(arrays, "archives")
        self._pictures = {
            role: _Pictures(
                _column(arrays, f"{role}.around", np.int32, count),
                _column(arrays, f"{role}.sizes", np.int64, count),
                _column(arrays, f"{role}.archives", np.int32, count),
                _column(arrays, f"{role}.offsets", np.int64, count),
            )
            for role in self.roles
        }
        _require_codes(self._track_of, len(self._tracks))
        if len(before) != len(after):
            raise ValueError("names have as many ends as beginnings")
        for pictures in self._pictures.values():
            _require_codes(pictures.around, len(before))
            _require_codes(pictures.archives, len(self._archives))

    def arrays(self) -> Arrays:
        """All columns by name, from which the same entries can be made again."""
        texts = {"ids": self.ids, "objects": self.object_ids.table, "tracks": self._tracks}
        texts |= {"before": self._names.before, "after": self._names.after, "archives": self._archives}
        arrays = {f"{name}.data": one.data for name, one in texts.items()}
        arrays |= {f"{name}.ends": one.ends for name, one in texts.items()}
        arrays |= {"object_of": self.object_ids.codes, "track_of": self._track_of, "holds_id": self._names.holds_id}
        arrays |= {"values": self._values, "has_values": self._has_values}
        for role, pictures in self._pictures.items():
            arrays |= {f"{role}.{name}": column for name, column in vars(pictures).items()}
        return arrays

    @property
    def num_pictures(self) -> int:
        """Of all roles together."""
        return sum(int((pictures.around != _ABSENT).sum()) for pictures in self._pictures.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Entry]:
        return (self._entry(i, name) for i, name in enumerate(self.ids))

    @overload
    def __getitem__(self, i: int) -> Entry: ...
    @overload
    def __getitem__(self, i: slice) -> list[Entry]: ...
    def __getitem__(self, i: int | slice) -> Entry | list[Entry]:
        if isinstance(i, slice):
            return [self[one] for one in range(*i.indices(len(self)))]
        place = i + len(self) if i < 0 else i
        return self._entry(place, self.ids[place])

    def _entry(self, i: int, name: str) -> Entry:
        track = int(self._track_of[i])
        return Entry(
            id=name,
            object_id=self.object_ids[i],
            values=tuple(self._values[i].tolist()) if self._has_values[i] else None,
            track=None if track == _ABSENT else self._tracks[track],
            sources={role: source for role in self.roles if (source := self._source(role, i, name)) is not None},
        )

    def _source(self, role: Role, i: int, sample: str) -> Source | None:
        pictures = self._pictures[role]
        around, archive, size = int(pictures.around[i]), int(pictures.archives[i]), int(pictures.sizes[i])
        if around == _ABSENT:
            return None
        name = self._names.before[around]
        if self._names.holds_id[around]:
            name = f"{name}{sample}{self._names.after[around]}"
        if archive == _ABSENT:
            return FileSource(self.root / name, name, size)
        return SliceSource(self.root / self._archives[archive], name, size, int(pictures.offsets[i]))


def _texts(arrays: Mapping[str, np.ndarray], name: str) -> Texts:
    try:
        return Texts(arrays[f"{name}.data"], arrays[f"{name}.ends"])
    except KeyError as error:
        raise ValueError(f"there are no {name}") from error


def _column(arrays: Mapping[str, np.ndarray], name: str, dtype: type, count: int, dimensions: int = 1) -> np.ndarray:
    column = arrays.get(name)
    if column is None or column.dtype != dtype or column.ndim != dimensions or len(column) != count:
        raise ValueError(f"{name} is no column of {count}")
    return column


def _require_codes(codes: np.ndarray, count: int) -> None:
    if codes.size and not _ABSENT <= codes.min() <= codes.max() < count:
        raise ValueError("a code is outside of its table")


class EntriesWriter:
    """Takes entries one by one, in any order, and keeps no object of any.

    Args:
        root: all their files lie below it, at the names that they have; or it is the one archive.
        roles: that an entry may have, in the order in which its pictures are read.
    """

    def __init__(self, root: Path, roles: Sequence[Role]) -> None:
        self._root, self._roles = root, tuple(roles)
        self._ids: list[str] = []
        self._objects, self._tracks, self._around, self._archives = Coder(), Coder(), Coder(), Coder()
        self._object_of, self._track_of = array("i"), array("i")
        self._values, self._has_values, self._num_values = array("d"), array("b"), 0
        self._columns = {role: (array("i"), array("q"), array("i"), array("q")) for role in self._roles}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, entry: Entry) -> None:
        """Raises ValueError where its numbers are not as many as others have, or a file lies elsewhere."""
        if entry.values is not None:
            if not self._num_values:
                self._num_values = len(entry.values)
                self._values.extend([0.0] * self._num_values * len(self._ids))
            if len(entry.values) != self._num_values:
                raise ValueError(f"{entry.id} has {len(entry.values)} numbers, others have {self._num_values}")
        if unknown := entry.sources.keys() - set(self._roles):
            raise ValueError(f"{entry.id} has pictures of other roles: {', '.join(sorted(unknown))}")
        self._ids.append(entry.id)
        self._object_of.append(self._objects.code(entry.object_id))
        self._track_of.append(_ABSENT if entry.track is None else self._tracks.code(entry.track))
        self._values.extend(entry.values or [0.0] * self._num_values)
        self._has_values.append(entry.values is not None)
        for role, columns in self._columns.items():
            row = self._place(entry.id, entry.sources.get(role))
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    def _place(self, sample: str, source: Source | None) -> tuple[int, int, int, int]:
        if source is None:
            return _ABSENT, 0, _ABSENT, 0
        before, found, after = source.name.partition(sample) if sample else (source.name, "", "")
        around = self._around.code((before, bool(found), after))
        match source:
            case FileSource(path, name, size):
                if path != self._root / name:
                    raise ValueError(f"{path} does not lie at {name} below {self._root}")
                return around, min(size, _LARGEST), _ABSENT, 0
            case SliceSource(path, _, size, offset):
                inside = path.relative_to(self._root).as_posix()
                archive = self._archives.code("" if inside == "." else inside)
                return around, min(size, _LARGEST), archive, offset
        raise ValueError(f"{source.name} is neither a file nor a part of an archive")

    def finish(self) -> Entries:
        """All of them, sorted by id."""
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        around = self._around.values
        texts = {
            "ids": Texts.of([self._ids[i] for i in order]),
            "objects": Texts.of(self._objects.values),
            "tracks": Texts.of(self._tracks.values),
            "before": Texts.of([before for before, _, _ in around]),
            "after": Texts.of([after for _, _, after in around]),
            "archives": Texts.of(self._archives.values),
        }
        arrays = {f"{name}.data": one.data for name, one in texts.items()}
        arrays |= {f"{name}.ends": one.ends for name, one in texts.items()}
        arrays["holds_id"] = np.array([holds for _, holds, _ in around], np.bool_)
        rows = np.array(order, np.int64)
        arrays["object_of"] = np.array(self._object_of, np.int32)[rows]
        arrays["track_of"] = np.array(self._track_of, np.int32)[rows]
        arrays["values"] = np.array(self._values, np.float64).reshape(len(rows), self._num_values)[rows]
        arrays["has_values"] = np.array(self._has_values, np.bool_)[rows]
        for role, columns in self._columns.items():
            names = ("around", "sizes", "archives", "offsets")
            for name, dtype, column in zip(names, (np.int32, np.int64, np.int32, np.int64), columns, strict=True):
                arrays[f"{role}.{name}"] = np.array(column, dtype)[rows]
        return Entries(self._root, self._roles, arrays)


def no_entries() -> Entries:
    return EntriesWriter(Path(), ()).finish()
