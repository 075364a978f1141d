"""The numbers of records as columns, gathered in one pass: what curves and tables are read from.

Records are taken in blocks, so that those of a long run can leave the memory block by block: see `records.index`.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from diagnostics.records.kinds import PARTS, STATISTICS, Kinds
from diagnostics.records.numbers import ABSENT, NO_NAMES, extend, extend_all, is_number, mappings

CELLS: dict[str, tuple[tuple[str, str], ...]] = {
    "layers": tuple((part, statistic) for part in PARTS for statistic in STATISTICS),
    "parameters": (("", "gradient_norm"), ("", "update_ratio")),
}
"""What is kept of each layer and of each parameter of a measured step, in this order."""
OFFSETS = "offset"
"""Array of a block from a file: the bytes at which its records begin."""
DTYPES = {"d": torch.float64, "q": torch.int64, "i": torch.int32}
"""By the type code of an array."""

FLAGS = ("skipped", "tripped")
"""Keys of which is kept in which records they are true."""

_HEAVY = frozenset({"layers", "parameters", "histograms", "samples"})
_MAX_STEP = 2**62
_BLOCK_NUMBERS = 2**20  # of a block, at 8 bytes or fewer
_IDS = {str, int, float}


class Arrays(Protocol):
    """Arrays by their names, wherever they are."""

    @property
    def codes(self) -> Mapping[str, str]:
        """Name -> type code: `d`, `q` or `i`."""

    def raw(self, name: str) -> "bytearray | array[Any]":
        """The numbers of one, as they lie in memory."""


@dataclass(frozen=True)
class ArraysInMemory:
    """`Arrays` as they were gathered."""

    arrays: Mapping[str, "array[Any]"]

    @property
    def codes(self) -> Mapping[str, str]:
        return {name: found.typecode for name, found in self.arrays.items()}

    def raw(self, name: str) -> "array[Any]":
        return self.arrays[name]


@dataclass
class KindColumns:
    """What a block has of one kind: rows are its records that have a step, in the order in which they were written."""

    kind: str
    rows: int = 0
    numbers: list[str] = field(default_factory=list)
    """Keys, in the order in which they first appear."""
    inner: list[tuple[str, str]] = field(default_factory=list)
    """(key, key of the dictionary there)."""
    layers: list[int] = field(default_factory=list)
    """Layouts: one group of rows for each list of names that was measured."""
    parameters: list[int] = field(default_factory=list)
    """Layouts, likewise."""


@dataclass
class Block:
    """Neighbouring records."""

    first: int
    """Number of the first record, from 0."""
    records: int
    kinds: list[KindColumns]
    arrays: Arrays
    begin: int = 0
    """Byte of the file at which its first record begins."""
    end: int = 0
    """Byte at which its last one ends."""

    def read(self, name: str) -> Tensor:
        """An array: float64, int64 or int32, of one dimension."""
        dtype, raw = DTYPES[self.arrays.codes[name]], self.arrays.raw(name)
        return torch.frombuffer(raw, dtype=dtype) if len(raw) else torch.empty(0, dtype=dtype)

    def columns(self, kind: str) -> tuple[int, KindColumns | None]:
        """Place among `kinds`, and the kind's columns, if it has any."""
        return next(((i, own) for i, own in enumerate(self.kinds) if own.kind == kind), (-1, None))


class _Sparse:
    """A column: values and the rows that have one."""

    def __init__(self) -> None:
        self.rows, self.values = array("i"), array("d")

    def add(self, row: int, value: float) -> None:
        try:
            self.values.append(value)
        except OverflowError:  # an integer beyond what a float can be
            return
        self.rows.append(row)


class _Group:
    """Measured steps with the same names."""

    def __init__(self, layout: int, cells: int) -> None:
        self.layout, self.rows = layout, array("i")
        self.cells = [array("d") for _ in range(cells)]


class _KindBuilder:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps, self.places = array("q"), array("i")
        self.flags = {key: array("i") for key in FLAGS}
        self.numbers: dict[str, _Sparse] = {}
        self.inner: dict[tuple[str, str], _Sparse] = {}
        self.drawn, self.samples = array("i"), array("i")
        self.groups: dict[str, dict[int, _Group]] = {part: {} for part in CELLS}

    def add(self, step: int, place: int, record: Mapping[str, Any], gathered: "Gathered") -> int:
        """Returns about how many numbers there are."""
        row, taken = len(self.steps), len(record)
        self.steps.append(step)
        self.places.append(place)
        for key, value in record.items():
            if is_number(value):
                column = self.numbers.get(key)
                if column is None:
                    column = self.numbers[key] = _Sparse()
                column.add(row, value)
            elif isinstance(value, dict | Mapping) and key not in _HEAVY:
                taken += len(value)
                for name, number in value.items():
                    if is_number(number):
                        inner = self.inner.get((key, name))
                        if inner is None:
                            inner = self.inner[key, name] = _Sparse()
                        inner.add(row, number)
        for key, rows in self.flags.items():
            if record.get(key):
                rows.append(row)
        drawn = gathered.sample_numbers(record.get("samples"))
        self.drawn.append(len(drawn))
        self.samples.extend(drawn)
        for part in CELLS:
            held = record.get(part)
            if held and isinstance(held, Mapping):
                taken += self._measure(part, row, held, gathered)
        return taken + len(drawn)

    def _measure(self, part: str, row: int, held: Mapping[str, Any], gathered: "Gathered") -> int:
        layout, cells = gathered.layout(tuple(held)), CELLS[part]
        group = self.groups[part].get(layout)
        if group is None:
            group = self.groups[part][layout] = _Group(layout, len(cells))
        group.rows.append(row)
        own = mappings(list(held.values()))
        for name in dict.fromkeys(outer for outer, _ in cells):
            found = mappings([one.get(name, NO_NAMES) for one in own]) if name else own
            keys = tuple(key for outer, key in cells if outer == name)
            columns = [column for (outer, _), column in zip(cells, group.cells, strict=True) if outer == name]
            if not extend_all(columns, keys, found):
                for key, column in zip(keys, columns, strict=True):
                    extend(column, [one.get(key, ABSENT) for one in found])
        return len(held) * len(cells)

    def close(self, number: int, arrays: "dict[str, array[Any]]") -> KindColumns:
        rows = len(self.steps)
        arrays[f"{number}/step"], arrays[f"{number}/place"] = self.steps, self.places
        arrays |= {f"{number}/{key}": rows for key, rows in self.flags.items()}
        if self.samples:
            arrays[f"{number}/drawn"], arrays[f"{number}/sample"] = self.drawn, self.samples
        for name, columns in (("number", self.numbers), ("inner", self.inner)):
            for place, column in enumerate(columns.values()):
                if len(column.rows) < rows:
                    arrays[f"{number}/{name}/{place}/row"] = column.rows
                arrays[f"{number}/{name}/{place}"] = column.values
        for part, groups in self.groups.items():
            for place, group in enumerate(groups.values()):
                arrays[f"{number}/{part}/{place}/row"] = group.rows
                for cell, values in enumerate(group.cells):
                    arrays[f"{number}/{part}/{place}/{cell}"] = values
        layouts = {part: [group.layout for group in groups.values()] for part, groups in self.groups.items()}
        return KindColumns(
            self.kind, rows, list(self.numbers), list(self.inner), layouts["layers"], layouts["parameters"]
        )


@dataclass
class Gathered:
    """What is known of all records beyond their columns; it grows with them."""

    records: int = 0
    """How many were taken."""
    kinds: list[str] = field(default_factory=list)
    """Of records with a step, in the order in which they first appear."""
    training: list[str] = field(default_factory=lambda: ["train"])
    """Kinds of training steps."""
    last_training: str | None = None
    """Kind of the last training step."""
    last_stage: int | None = None
    """Number of the record of the last stage, where no training step came after it."""
    headers: list[int] = field(default_factory=list)
    """Numbers of their records."""
    layouts: list[tuple[str, ...]] = field(default_factory=list)
    """Names that were measured together, in their order."""
    samples: Sequence[Any] = field(default_factory=list)
    """Ids of samples; their place is their number. A list, once others are added."""
    _layouts: dict[tuple[str, ...], int] = field(default_factory=dict)
    _samples: dict[Any, int] = field(default_factory=dict)

    def layout(self, names: tuple[str, ...]) -> int:
        """Number of these names; they are kept where they are new."""
        if len(self._layouts) < len(self.layouts):
            self._layouts = {known: place for place, known in enumerate(self.layouts)}
        number = self._layouts.setdefault(names, len(self.layouts))
        if number == len(self.layouts):
            self.layouts.append(names)
        return number

    def sample_numbers(self, names: Any) -> list[int]:
        """Of a record's samples; empty for what is no list of ids."""
        if not isinstance(names, list | tuple):
            return []
        known, found = self._samples, []
        if len(known) < len(self.samples):
            self.samples = list(self.samples)
            known |= {name: number for number, name in enumerate(self.samples)}
        for name in names:
            if type(name) not in _IDS and not isinstance(name, str | int | float):
                return []
            number = known.setdefault(name, len(known))
            if number == len(self.samples):
                self.samples = self.samples if isinstance(self.samples, list) else list(self.samples)
                self.samples.append(name)
            found.append(number)
        return found

    def forget(self) -> None:
        """Let go of what only finding the numbers of names needs; it is made again."""
        self._layouts, self._samples = {}, {}


class Gatherer:
    """Takes records in order and closes a block when it is full.

    Args:
        known: of the records before, which it goes on from.
        keep: takes a block's arrays to where they are to be read from; None keeps all in memory, as one block.
    """

    def __init__(
        self, known: Gathered | None = None, keep: Callable[[Mapping[str, "array[Any]"]], Arrays] | None = None
    ) -> None:
        self.known = known or Gathered()
        self.blocks: list[Block] = []
        self._kinds = Kinds()
        self._kinds.steps |= set(self.known.training)
        self._keep = keep
        self._begin()

    def _begin(self) -> None:
        self._own: dict[str, _KindBuilder] = {}
        self._first, self._numbers = self.known.records, 0
        self._places = array("q")
        self._end = 0

    def add(self, record: Mapping[str, Any], begin: int = 0, end: int = 0) -> None:
        """A record, and the bytes of its file between which it stands."""
        known, number = self.known, self.known.records
        kind, step = self._kinds.learn(record), record.get("step")
        known.records += 1
        self._end = end
        if self._keep is not None:
            self._places.append(begin)
        if kind == "header":
            known.headers.append(number)
        if len(self._kinds.steps) > len(known.training):
            known.training += sorted(self._kinds.steps - set(known.training))
        if isinstance(step, int) and abs(step) <= _MAX_STEP:
            own = self._own.get(kind)
            if own is None:
                own = self._own[kind] = _KindBuilder(kind)
                if kind not in known.kinds:
                    known.kinds.append(kind)
            self._numbers += own.add(step, number - self._first, record, known)
            if kind == "stage":
                known.last_stage = number
            elif kind in self._kinds.steps:
                known.last_training, known.last_stage = kind, None
        if self._keep is not None and self._numbers >= _BLOCK_NUMBERS:
            self.close()

    def go_on(self) -> None:
        """Behind records that another gatherer took, and that are known."""
        self._begin()

    def close(self) -> None:
        """What was taken since the last block is one."""
        records = self.known.records - self._first
        if records:
            arrays: dict[str, array[Any]] = {}
            kinds = [own.close(number, arrays) for number, own in enumerate(self._own.values())]
            if self._keep is not None:
                arrays[OFFSETS] = self._places
            kept: Arrays = ArraysInMemory(arrays) if self._keep is None else self._keep(arrays)
            begin = self._places[0] if self._places else 0
            self.blocks.append(Block(self._first, records, kinds, kept, begin, self._end))
        self._begin()
