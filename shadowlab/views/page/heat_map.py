"""Layers by steps as 16-bit codes that a script draws: 800 layers x 1000 steps stay a few MB.

A code is 0 where nothing was measured, 1 NaN, 2 Inf, 3 -Inf, 4 exactly zero (on a log scale); 16 to 65535 are the
values from `low` to `high`, on a log scale of base 2 or a linear one. Steps beyond `MAX_COLUMNS` share columns.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diagnostics.records import History, LayerTable
from shadowlab.views.charts import LAYER_MAPS, LayerMap
from shadowlab.views.layer_map import blocks, merged
from shadowlab.views.page.wording import number

MAX_COLUMNS = 400
_ROWS = 64  # of a table at a time, where it has to be copied
ABSENT, NAN, INF, MINUS_INF, ZERO, FIRST = 0, 1, 2, 3, 4, 16
_LAST = 65535


@dataclass(frozen=True)
class LayerRow:
    """The text of one layer: numbers at its last measured step, least headroom, and where it first was not finite."""

    name: str
    activation: str
    gradient: str
    headroom: str
    not_finite: str


@dataclass(frozen=True)
class HeatMap:
    """The layer maps of a run for the page."""

    content: dict[str, Any]
    """What the script draws."""
    rows: tuple[LayerRow, ...]
    """The same in words."""
    num_steps: int
    """That were measured."""
    per_column: int
    """Measured steps of one column."""

    @classmethod
    def of(cls, history: History) -> "HeatMap | None":
        """None where no step has statistics of layers."""
        skipped = dict(zip(history.measured_steps, history.measured_skipped.tolist(), strict=True))
        content: dict[str, Any] = {"maps": []}
        facts = _Facts()
        names: tuple[str, ...] = ()
        num_steps = width = 0
        for one in LAYER_MAPS:  # one table at a time: those of a long run are large
            table = history.layers(one.statistic, one.part)
            if not table.names or not table.steps:
                return None
            names, num_steps = table.names, len(table.steps)
            width = math.ceil(num_steps / MAX_COLUMNS)
            ends = [min(i + width, num_steps) - 1 for i in range(0, num_steps, width)]
            content["columns"] = [(table.steps[end - end % width], table.steps[end]) for end in ends]
            encoded = _encoded(one, table, width)
            if encoded is not None:
                content["maps"].append(encoded)
            facts.take(one, table, skipped)
        content |= {"layers": list(names), "blocks": blocks(names)}
        return cls(content, facts.rows(names), num_steps, width)


class _Facts:
    """The text of each layer, from one table after another."""

    def __init__(self) -> None:
        self._last: dict[str, list[str]] = {}
        self._least: list[str] = []
        self._bad: dict[int, int] = {}  # row -> first step

    def take(self, one: LayerMap, table: LayerTable, skipped: Mapping[int, bool]) -> None:
        """skipped: steps in which the gradient scaler found its scale too large, so that their gradients are no
        fault."""
        if one.statistic != "norm":
            self._least = _least(table)
            return
        excused = [one.part == "gradient" and skipped.get(step, False) for step in table.steps]
        finite = torch.cat([rows.isfinite() for rows in table.values.split(_ROWS)])  # it takes a copy
        bad = table.present & ~finite & ~torch.tensor(excused, dtype=torch.bool)
        for row in bad.any(1).nonzero().flatten().tolist():
            step = table.steps[int(bad[row].nonzero()[0])]
            self._bad[row] = min(step, self._bad.get(row, step))
        there = table.present.any(1).tolist()
        ends = table.present.shape[1] - 1 - table.present.flip(1).to(torch.uint8).argmax(1)
        last = table.values.gather(1, ends[:, None]).flatten().tolist()
        texts = (number(value) if is_there else "not measured" for value, is_there in zip(last, there, strict=True))
        self._last[one.part] = list(texts)

    def rows(self, names: Sequence[str]) -> tuple[LayerRow, ...]:
        found = zip(names, self._last["activation"], self._last["gradient"], self._least, strict=True)
        return tuple(
            LayerRow(*texts, f"step {self._bad[row]}" if row in self._bad else "") for row, texts in enumerate(found)
        )


def _least(table: LayerTable) -> list[str]:
    """Each layer's least headroom, and when."""
    least: list[tuple[int, float]] = []
    for own, there in zip(table.values.split(_ROWS), table.present.split(_ROWS), strict=True):
        values = own.masked_fill(~there, math.inf)
        worst = values.nan_to_num(-math.inf, math.inf, -math.inf).argmin(1)
        least += zip(worst.tolist(), values.gather(1, worst[:, None]).flatten().tolist(), strict=True)
    texts = []
    for row, (column, value) in enumerate(least):
        text = f"{number(value)} at step {table.steps[column]}" if value < math.inf else "all zero"
        if math.isnan(value):
            text = f"NaN at step {table.steps[column]}"
        texts.append(text if bool(table.present[row].any()) else "not measured")
    return texts


def _encoded(one: LayerMap, table: LayerTable, width: int) -> dict[str, Any] | None:
    """None where nothing was measured."""
    if not bool(table.present.any()):
        return None
    values, present = merged(table.values, table.present, width, low_is_worse=one.low_is_worse)
    scaled = values.clamp(min=0).log2() if one.is_log else values
    finite = present & values.isfinite() & scaled.isfinite()
    low, high = (float(scaled[finite].min()), float(scaled[finite].max())) if bool(finite.any()) else (0.0, 1.0)
    share = (scaled - low) / (high - low) if high > low else torch.zeros_like(scaled)
    codes = (FIRST + share.nan_to_num(0, 0, 0).clamp(0, 1) * (_LAST - FIRST)).round().to(torch.int32)
    for code, where in (
        (ZERO, present & (values <= 0) & one.is_log),
        (NAN, values.isnan()),
        (INF, values == math.inf),
        (MINUS_INF, values == -math.inf),
        (ABSENT, ~present),
    ):
        codes[where] = code
    return {
        "key": one.key,
        "title": one.title,
        "unit": one.unit,
        "log": one.is_log,
        "low": low,
        "high": high,
        "reversed": one.low_is_worse,
        "codes": base64.b64encode(codes.numpy().astype("<u2").tobytes()).decode("ascii"),
    }
