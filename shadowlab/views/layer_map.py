"""Layers by steps, made ready to be drawn: columns that stand for several steps, rows in blocks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics.board import block_of
from diagnostics.records import LayerTable
from shadowlab.views.charts import LayerMap

MAX_COLUMNS = 128
_ROWS = 64  # of a table at a time, whose columns are merged: tables of long runs are large


def merged(values: Tensor, present: Tensor, width: int, *, low_is_worse: bool) -> tuple[Tensor, Tensor]:
    """The worst of every `width` columns, so that what happened in one step alone is still there.

    Args:
        values: (rows, columns) float64. present: (rows, columns) bool, where there is a number.
        low_is_worse: whether the lowest is kept, else the highest; a NaN that was measured is the worst of all.

    Returns:
        Both, (rows, columns / width rounded up); NaN where no column has a number.
    """
    if width == 1:
        return values, present
    rows = zip(values.split(_ROWS), present.split(_ROWS), strict=True)
    found = [_merged_rows(*pair, width, low_is_worse=low_is_worse) for pair in rows]
    return torch.cat([worst for worst, _ in found]), torch.cat([there for _, there in found])


def _merged_rows(values: Tensor, present: Tensor, width: int, *, low_is_worse: bool) -> tuple[Tensor, Tensor]:
    nothing = math.inf if low_is_worse else -math.inf
    spare = -values.shape[1] % width
    filled = torch.nn.functional.pad(values.masked_fill(~present, nothing), (0, spare), value=nothing)
    there = torch.nn.functional.pad(present, (0, spare), value=False)
    shape = (values.shape[0], -1, width)
    worst = filled.view(shape).amin(2) if low_is_worse else filled.view(shape).amax(2)
    there = there.view(shape).any(2)
    return worst.masked_fill(~there, math.nan), there


def blocks(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """(block, first row, number of rows) of neighbours that belong to one block."""
    found: list[tuple[str, int, int]] = []
    for row, name in enumerate(names):
        block = block_of(name)
        if found and found[-1][0] == block:
            found[-1] = (block, found[-1][1], found[-1][2] + 1)
        else:
            found.append((block, row, 1))
    return found


class LayerColumns:
    """Collects a statistic step by step; a run of any length has at most MAX_COLUMNS columns.

    When they are full, neighbours are merged two by two.
    """

    def __init__(self, layer_map: LayerMap) -> None:
        self._map = layer_map
        self._rows: dict[str, int] = {}
        self._steps: list[int] = []  # the last of each column
        self._columns: list[tuple[Tensor, Tensor]] = []  # values and whether there is one: (rows,) as known then
        self._merged = 1  # records a column
        self._in_last = 0

    def add(self, step: int, layers: Mapping[str, Mapping[str, Any]]) -> None:
        """A record's `layers`. A layer that is new stands below the others."""
        for name in layers:
            self._rows.setdefault(name, len(self._rows))
        found = {}
        for name, parts in layers.items():
            value = parts.get(self._map.part, {}).get(self._map.statistic)
            if value is not None:
                found[self._rows[name]] = value
        values = torch.full((len(self._rows),), math.nan, dtype=torch.float64)
        present = torch.zeros(len(self._rows), dtype=torch.bool)
        rows = torch.tensor(list(found), dtype=torch.long)
        values[rows] = torch.tensor(list(found.values()), dtype=torch.float64)
        present[rows] = True
        if self._columns and self._in_last < self._merged:
            self._columns[-1] = self._worst(self._columns[-1], (values, present))
            self._steps[-1] = step
            self._in_last += 1
            return
        if len(self._columns) == MAX_COLUMNS:
            self._columns = [self._worst(*self._columns[i : i + 2]) for i in range(0, MAX_COLUMNS, 2)]
            self._steps = self._steps[1::2]
            self._merged *= 2
        self._columns.append((values, present))
        self._steps.append(step)
        self._in_last = 1

    @property
    def num_layers(self) -> int:
        return len(self._rows)

    def table(self) -> LayerTable:
        """steps: the last of each column."""
        return LayerTable(tuple(self._rows), tuple(self._steps), *self._stacked(self._columns))

    def _stacked(self, columns: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Values and presence, (rows, columns)."""
        shape = (len(self._rows), len(columns))
        values = torch.full(shape, math.nan, dtype=torch.float64)
        present = torch.zeros(shape, dtype=torch.bool)
        for column, (own, there) in enumerate(columns):
            values[: len(own), column], present[: len(own), column] = own, there
        return values, present

    def _worst(self, *columns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        values, present = merged(*self._stacked(columns), len(columns), low_is_worse=self._map.low_is_worse)
        return values[:, 0], present[:, 0]
