"""Where the records of a history are: in memory, or in a file that is read again for those that are asked for."""

import bisect
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, overload

import torch
from torch import Tensor

from diagnostics.records import index
from diagnostics.records.columns import OFFSETS, Block, Gathered, Gatherer
from diagnostics.records.halves import SecondHalf, middle_of, no_collection
from diagnostics.records.lines import lines_of, open_records, parse
from diagnostics.records.reading import Columns

KEPT_BYTES = 2**24
"""Of a file whose records are kept as they are: no more is gained by an index."""
_BEGINNING_BYTES = 2**20  # with the header, which says what trains
_LEAST_GROWTH = 2**25  # bytes that a file must have grown by for its index to be written again
_LEAST_SHARE = 20  # and the share of what is indexed, its inverse

_Record = Mapping[str, Any]


class Source:
    """Records and their columns.

    Args:
        columns: of all records.
        record: gives one by its number.
    """

    def __init__(self, columns: Columns, record: Callable[[int], _Record]) -> None:
        self.columns, self.record = columns, record

    def records(self, numbers: Tensor) -> Sequence[_Record]:
        """Those of these numbers, (N,) int64. A list where they are in memory."""
        return Records(self.record, numbers)


class RecordsInMemory(Source):
    """As they were given."""

    def __init__(self, records: Iterable[_Record]) -> None:
        self._kept = list(records)
        gatherer = Gatherer()
        for record in self._kept:
            gatherer.add(record)
        gatherer.close()
        super().__init__(Columns(gatherer.blocks, gatherer.known), self._kept.__getitem__)

    def records(self, numbers: Tensor) -> list[_Record]:
        return [self._kept[number] for number in numbers.tolist()]


class RecordsInFile(Source):
    """Those of a long file, as far as it goes now: it may be written to meanwhile.

    Raises:
        OSError: as `read_records`.
        ValueError: likewise, unless `on_damage` takes the error; what stands before it is read then.
    """

    def __init__(self, path: Path, on_damage: Callable[[Exception], None] | None = None) -> None:
        self._path, self._file = path, open_records(path)
        weakref.finalize(self, self._file.close)
        status = os.fstat(self._file.fileno())
        found = index.load(path, self._file)
        known, before, end = Gathered(), list[Block](), 0
        if found is not None:
            known, before, file = found
            weakref.finalize(self, file.close)
            end = before[-1].end
        gatherer = Gatherer(known, index.ArrayFile(path.parent).keep)
        whole = self._gather(gatherer, end, on_damage)
        self._blocks = [*before, *gatherer.blocks]
        if whole is not None and whole - end >= max(_LEAST_GROWTH if before else 0, end // _LEAST_SHARE, 1):
            index.save(path, self._file, status, known, self._blocks)
            saved = index.load(path, self._file)  # ids of samples, and what the heap is left with, go with the old one
            if saved is not None:
                weakref.finalize(self, saved[2].close)
                if saved[1][-1].end == self._blocks[-1].end:  # not that of another process meanwhile
                    known, self._blocks, _ = saved
        known.forget()
        super().__init__(Columns(self._blocks, known), self._read)

    def _gather(self, gatherer: Gatherer, begin: int, on_damage: Callable[[Exception], None] | None) -> int | None:
        """Returns where the last line ends; None where it has no end, or another is damaged."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            with no_collection():
                middle = middle_of(self._path, begin, size)
                if middle is None:
                    return self._lines(self._file, gatherer, begin, None)
                begun = self._lines(self._file, gatherer, begin, min(begin + _BEGINNING_BYTES, middle))
                assert begun is not None  # a line ends at the middle
                second = SecondHalf(gatherer, self._path.parent, partial(self._lines_of_child, middle))
                try:
                    self._lines(self._file, gatherer, begun, middle)
                except BaseException:
                    second.stop()
                    raise
                ended = second.add_to(gatherer)
                return ended or self._lines(self._file, gatherer, middle, None)
        except ValueError as error:
            if on_damage is None:
                raise
            on_damage(error)
            return None

    def _lines_of_child(self, begin: int, gatherer: Gatherer) -> int | None:
        with open_records(self._path) as file:  # the place in a file that was opened before the fork is everybody's
            if not os.path.samestat(os.fstat(file.fileno()), os.fstat(self._file.fileno())):
                return None
            return self._lines(file, gatherer, begin, None)

    def _lines(self, file: BinaryIO, gatherer: Gatherer, begin: int, end: int | None) -> int | None:
        """Lines from a byte to another, or to the end; as `_gather`."""
        file.seek(begin)
        place, line = begin, b"\n"
        try:
            for line, record in lines_of(file, self._path, number=gatherer.known.records + 1):
                gatherer.add(record, place, place + len(line))
                place += len(line)
                if end is not None and place >= end:
                    break
        finally:
            gatherer.close()
        return place if line.endswith(b"\n") else None

    def _read(self, number: int) -> _Record:
        block = self._blocks[bisect.bisect_right(self._blocks, number, key=lambda one: one.first) - 1]
        begins = block.read(OFFSETS)
        place = number - block.first
        begin = int(begins[place])
        end = int(begins[place + 1]) if place + 1 < block.records else block.end
        self._file.seek(begin)
        record = parse(self._file.read(end - begin))
        if not isinstance(record, dict):
            raise ValueError(f"{self._path}: changed while it was read; run the command again")
        return record


class Records(Sequence[_Record]):
    """Records that are read from their file whenever they are asked for, one after another."""

    def __init__(self, record: Callable[[int], _Record], numbers: Tensor) -> None:
        self._record, self._numbers = record, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> _Record: ...
    @overload
    def __getitem__(self, place: slice) -> "Records": ...
    def __getitem__(self, place: int | slice) -> "_Record | Records":
        if isinstance(place, slice):
            return Records(self._record, torch.tensor(self._numbers.tolist()[place], dtype=torch.int64))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._record(int(self._numbers[place]))

    def __iter__(self) -> Iterator[_Record]:
        return map(self._record, self._numbers.tolist())
