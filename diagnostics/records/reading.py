"""Columns of all blocks as one: by ascending step, a step that was written twice as it was written last."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diagnostics.records.columns import CELLS, Block, Gathered
from diagnostics.records.numbers import ABSENT_BITS


@dataclass(frozen=True)
class Rows:
    """The records of one kind that count, by ascending step."""

    steps: Tensor
    """(N,) int64, strictly ascending."""
    records: Tensor
    """(N,) int64: their numbers among all records."""
    places: Tensor | None
    """(rows as written,) int64: the place of each among those that count, -1 for none. None: each is its own."""

    def __len__(self) -> int:
        return len(self.steps)


class Columns:
    """What blocks hold, put together when it is asked for; nothing of the size of a table is kept."""

    def __init__(self, blocks: Sequence[Block], known: Gathered) -> None:
        self.blocks, self.known = tuple(blocks), known
        self._rows: dict[str, Rows] = {}
        self._measured: dict[str, tuple[Tensor, dict[str, list[tuple[str, ...]]]]] = {}

    def rows(self, kind: str) -> Rows:
        if kind not in self._rows:
            self._rows[kind] = self._find_rows(kind)
        return self._rows[kind]

    def measured(self, kind: str) -> tuple[Tensor, dict[str, list[tuple[str, ...]]]]:
        """(places of the records that measured layers or parameters; by part: names, in the order of the steps)."""
        if kind not in self._measured:
            self._measured[kind] = self._find_measured(kind)
        return self._measured[kind]

    def _find_rows(self, kind: str) -> Rows:
        steps, records = [], []
        for block in self.blocks:
            number, own = block.columns(kind)
            if own is not None:
                steps.append(block.read(f"{number}/step"))
                records.append(block.read(f"{number}/place").long() + block.first)
        step, record = _joined(steps, torch.int64), _joined(records, torch.int64)
        if bool((step[1:] > step[:-1]).all()):
            return Rows(step, record, None)
        ordered, order = torch.sort(step, stable=True)
        counts = torch.ones(len(order), dtype=torch.bool)
        counts[:-1] = ordered[1:] != ordered[:-1]
        kept = order[counts]
        places = torch.full((len(step),), -1, dtype=torch.int64)
        places[kept] = torch.arange(len(kept))
        return Rows(step[kept], record[kept], places)

    def keys(self, kind: str) -> tuple[str, ...]:
        """Names of the numbers of its records, in the order in which they first appear."""
        own = (block.columns(kind)[1] for block in self.blocks)
        return tuple(dict.fromkeys(key for columns in own if columns is not None for key in columns.numbers))

    def inner_keys(self, kind: str, outer: str) -> tuple[str, ...]:
        """Names of the numbers in a dictionary of its records."""
        own = (block.columns(kind)[1] for block in self.blocks)
        inner = (pair for columns in own if columns is not None for pair in columns.inner)
        return tuple(dict.fromkeys(name for key, name in inner if key == outer))

    def column(self, kind: str, key: str | tuple[str, str]) -> tuple[Tensor, Tensor]:
        """(places of records, ascending; values), of a number or of one in a dictionary."""
        name = "number" if isinstance(key, str) else "inner"
        rows, values = [], []
        for block, number, begin, count in self._parts(kind):
            columns = block.kinds[number]
            keys: Sequence[object] = columns.numbers if name == "number" else columns.inner
            if key in keys:
                array = f"{number}/{name}/{keys.index(key)}"
                values.append(block.read(array))
                dense = len(values[-1]) == count
                rows.append((torch.arange(count) if dense else block.read(f"{array}/row").long()) + begin)
        return self._placed(kind, _joined(rows, torch.int64), _joined(values, torch.float64))

    def flagged(self, kind: str, flag: str) -> Tensor:
        """Which of its records have one of `FLAGS`, (N,) bool."""
        rows = [block.read(f"{number}/{flag}").long() + begin for block, number, begin, _ in self._parts(kind)]
        found = torch.zeros(len(self.rows(kind)), dtype=torch.bool)
        found[self._placed(kind, _joined(rows, torch.int64))[0]] = True
        return found

    def samples(self, kind: str) -> tuple[Tensor, Tensor]:
        """(how many each record drew, (N,) int64; their numbers one record after another, int32)."""
        counts, drawn = [], []
        for block, number, _, count in self._parts(kind):
            if f"{number}/drawn" in block.arrays.codes:
                counts.append(block.read(f"{number}/drawn").long())
                drawn.append(block.read(f"{number}/sample"))
            else:
                counts.append(torch.zeros(count, dtype=torch.int64))
        each, flat = _joined(counts, torch.int64), _joined(drawn, torch.int32)
        if self.rows(kind).places is None:
            return each, flat
        begins = each.cumsum(0) - each
        order, _ = self._placed(kind, torch.arange(len(each)), torch.zeros(0), with_rows=True)
        each, begins = each[order], begins[order]
        shift = torch.repeat_interleave(begins - (each.cumsum(0) - each), each)
        return each, flat[shift + torch.arange(len(shift))]

    def _find_measured(self, kind: str) -> tuple[Tensor, dict[str, list[tuple[str, ...]]]]:
        everywhere, orders = [], {}
        for part in CELLS:
            first: list[tuple[int, tuple[str, ...]]] = []
            for _, places, own in self._groups(kind, part):
                kept = places[places >= 0]
                everywhere.append(kept)
                if len(kept):
                    first.append((int(kept.min()), own))
            orders[part] = list(dict.fromkeys(own for _, own in sorted(first, key=lambda pair: pair[0])))
        return _joined(everywhere, torch.int64).unique(), orders

    def measures(self, kind: str, part: str) -> Tensor:
        """Places of its records that measured layers, or parameters; ascending."""
        found = [places[places >= 0] for _, places, _ in self._groups(kind, part)]
        return _joined(found, torch.int64).sort().values

    def names(self, kind: str, part: str) -> tuple[str, ...]:
        """Of layers or parameters: one that ran in some steps only comes after its predecessor in those."""
        return merged_order(self.measured(kind)[1][part])

    def table(self, kind: str, part: str, cell: int, names: Sequence[str], columns: slice | Tensor) -> Tensor:
        """(names, columns) float64, `ABSENT_BITS` where there is no number.

        Args:
            cell: place among the `CELLS` of the part.
            names: of the rows.
            columns: places among the measured steps, ascending.
        """
        measured = self.measured(kind)[0][columns]
        found = torch.full((len(names), len(measured)), ABSENT_BITS, dtype=torch.int64).view(torch.float64)
        place = {name: row for row, name in enumerate(names)}
        for read, places, own in self._groups(kind, part):
            kept = torch.isin(places, measured)
            if bool(kept.any()):
                values = read(cell).view(len(places), len(own))
                rows = torch.tensor([place[name] for name in own])
                found[rows[:, None], torch.searchsorted(measured, places[kept])] = (
                    values if bool(kept.all()) else values[kept]
                ).T
        return found

    def named(self, kind: str, part: str, names: Sequence[str]) -> Tensor:
        """(names, measured steps) bool: whether a step has an entry of that name."""
        measured = self.measured(kind)[0]
        found = torch.zeros(len(names), len(measured), dtype=torch.bool)
        place = {name: row for row, name in enumerate(names)}
        for _, places, own in self._groups(kind, part):
            kept = places[places >= 0]
            if len(kept):
                rows = torch.tensor([place[name] for name in own])
                found[rows[:, None], torch.searchsorted(measured, kept)] = True
        return found

    def _groups(self, kind: str, part: str) -> Iterator[tuple[Callable[[int], Tensor], Tensor, tuple[str, ...]]]:
        """Of measured records with the same names: (what reads a cell's numbers, places of the records, or -1 for one
        that does not count, names)."""
        for block, number, begin, _ in self._parts(kind):
            for group, layout in enumerate(getattr(block.kinds[number], part)):
                array = f"{number}/{part}/{group}"
                rows = block.read(f"{array}/row").long() + begin
                yield partial(_cell, block, array), self._all_places(kind, rows), self.known.layouts[layout]

    def _parts(self, kind: str) -> Iterator[tuple[Block, int, int, int]]:
        """(block, place of the kind in it, rows before it, rows in it)."""
        begin = 0
        for block in self.blocks:
            number, own = block.columns(kind)
            if own is not None:
                yield block, number, begin, own.rows
                begin += own.rows

    def _all_places(self, kind: str, rows: Tensor) -> Tensor:
        places = self.rows(kind).places
        return rows if places is None else places[rows]

    def _placed(
        self, kind: str, rows: Tensor, values: Tensor | None = None, *, with_rows: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Places of rows that count, ascending, and their values; with_rows: the rows in the order of their places."""
        places = self._all_places(kind, rows)
        if self.rows(kind).places is not None:
            kept = places >= 0
            places, order = places[kept].sort()
            rows = rows[kept][order]
            if values is not None and not with_rows:
                values = values[kept][order]
        return rows if with_rows else places, torch.zeros(0) if values is None else values


def _cell(block: Block, array: str, cell: int) -> Tensor:
    return block.read(f"{array}/{cell}")


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)


def merged_order(parts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Names in one order that keeps, as far as there is one, that of every part."""
    order: list[str] = []
    for names in dict.fromkeys(map(tuple, parts)):  # as a rule every step has the same
        places = {name: place for place, name in enumerate(order)}
        behind: dict[int, list[str]] = {}  # new names by the place of the known one before them
        place = -1
        for name in names:
            if name in places:
                place = places[name]
            else:
                behind.setdefault(place, []).append(name)
        merged = behind.get(-1, [])
        for place, name in enumerate(order):
            merged += [name, *behind.get(place, [])]
        order = merged
    return tuple(order)
