"""One statistic of every layer over the steps of a run, in bounded memory."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diagnostics.records import LayerTable

MAX_COLUMNS = 128


class LayerColumns:
    """Collects a statistic step by step; a run of any length has at most MAX_COLUMNS columns.

    When they are full, neighbours are merged two by two into the worse of both, so that what happened in one step
    alone is still there; NaN is worst.

    Args:
        value_of: number of a layer's record (`{"activation": {...}, "gradient": {...}}`), None where it has none.
        worse: which of two finite numbers is the worse one, `max` or `min`.
    """

    def __init__(self, value_of: Callable[[Mapping[str, Any]], float | None], *, worse: str) -> None:
        self._value_of = value_of
        self._worse = torch.maximum if worse == "max" else torch.minimum  # both keep NaN
        self._rows: dict[str, int] = {}
        self._columns: list[tuple[int, Tensor, Tensor]] = []  # last step, values, whether there is one
        self._merged = 1  # records a column
        self._in_last = 0

    def add(self, step: int, layers: Mapping[str, Mapping[str, Any]]) -> None:
        """A record's `layers`. A layer that is new stands below the others."""
        for name in layers:
            self._rows.setdefault(name, len(self._rows))
        found = {
            self._rows[name]: value for name, parts in layers.items() if (value := self._value_of(parts)) is not None
        }
        values = torch.full((len(self._rows),), math.nan, dtype=torch.float64)
        present = torch.zeros(len(self._rows), dtype=torch.bool)
        rows = torch.tensor(list(found), dtype=torch.long)
        values[rows] = torch.tensor(list(found.values()), dtype=torch.float64)
        present[rows] = True
        new = (step, values, present)
        if self._columns and self._in_last < self._merged:
            self._columns[-1] = self._joined(self._columns[-1], new)
            self._in_last += 1
            return
        if len(self._columns) == MAX_COLUMNS:
            self._columns = [self._joined(*self._columns[i : i + 2]) for i in range(0, MAX_COLUMNS, 2)]
            self._merged *= 2
        self._columns.append(new)
        self._in_last = 1

    @property
    def num_layers(self) -> int:
        return len(self._rows)

    def table(self) -> LayerTable:
        """steps: the last of each column."""
        shape = (len(self._rows), len(self._columns))
        values = torch.full(shape, math.nan, dtype=torch.float64)
        present = torch.zeros(shape, dtype=torch.bool)
        for column, (_, own, there) in enumerate(self._columns):
            values[: len(own), column], present[: len(own), column] = own, there
        return LayerTable(tuple(self._rows), tuple(step for step, _, _ in self._columns), values, present)

    def _joined(
        self, earlier: tuple[int, Tensor, Tensor], later: tuple[int, Tensor, Tensor]
    ) -> tuple[int, Tensor, Tensor]:
        (_, first, has_first), (step, second, has_second) = earlier, later
        new = len(second) - len(first)  # layers are added, never taken away
        first = torch.nn.functional.pad(first, (0, new), value=math.nan)
        has_first = torch.nn.functional.pad(has_first, (0, new))
        values = torch.where(has_first & has_second, self._worse(first, second), torch.where(has_first, first, second))
        return step, values, has_first | has_second
