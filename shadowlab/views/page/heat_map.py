"""Layers by steps as 16-bit codes that a script draws: 800 layers x 1000 steps stay a few MB.

A code is 0 where nothing was measured, 1 NaN, 2 Inf, 3 -Inf, 4 exactly zero (on a log scale); 16 to 65535 are the
values from `low` to `high`, on a log scale of base 2 or a linear one. Steps beyond `MAX_COLUMNS` share columns.
"""

import base64
import math
from dataclasses import dataclass
from typing import Any

import torch

from diagnostics.records import History, LayerTable
from shadowlab.views.charts import LAYER_MAPS, LayerMap
from shadowlab.views.layer_map import blocks, merged
from shadowlab.views.page.wording import number

MAX_COLUMNS = 400
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
        tables = {(one.part, one.statistic): history.layers(one.statistic, one.part) for one in LAYER_MAPS}
        norms = tables["activation", "norm"]
        names, steps = norms.names, norms.steps
        if not names or not steps:
            return None
        width = math.ceil(len(steps) / MAX_COLUMNS)
        columns = [(steps[i], steps[min(i + width, len(steps)) - 1]) for i in range(0, len(steps), width)]
        maps = [_encoded(one, tables[one.part, one.statistic], width) for one in LAYER_MAPS]
        content = {
            "layers": list(names),
            "blocks": blocks(names),
            "columns": columns,
            "maps": [one for one in maps if one is not None],
        }
        skipped = {record["step"] for record in history.measured_records() if record.get("skipped")}
        return cls(content, tuple(_rows(tables, skipped)), len(steps), width)


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


def _rows(tables: dict[tuple[str, str], LayerTable], skipped: set[int]) -> list[LayerRow]:
    """skipped: steps in which the gradient scaler found its scale too large, so that their gradients are no fault."""
    headroom = tables["activation", "headroom_bits"]
    rows = []
    for row, name in enumerate(headroom.names):
        texts = {}
        bad: list[int] = []
        for key in ("activation", "gradient"):
            table = tables[key, "norm"]
            values, there = table.values[row], table.present[row]
            texts[key] = number(float(values[there][-1])) if bool(there.any()) else "not measured"
            steps = [table.steps[i] for i in torch.nonzero(there & ~values.isfinite()).flatten().tolist()]
            bad += [step for step in steps if key != "gradient" or step not in skipped]
        there = headroom.present[row]
        least = "not measured"
        if bool(there.any()):
            own = headroom.values[row].masked_fill(~there, math.inf)
            worst = int(own.nan_to_num(-math.inf, math.inf, -math.inf).argmin())
            value = float(own[worst])
            least = f"{number(value)} at step {headroom.steps[worst]}" if value < math.inf else "all zero"
            if math.isnan(value):
                least = f"NaN at step {headroom.steps[worst]}"
        rows.append(LayerRow(name, texts["activation"], texts["gradient"], least, f"step {min(bad)}" if bad else ""))
    return rows
