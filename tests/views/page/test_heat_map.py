"""Codes of the heat map: what a script reads from them is what was measured."""

import base64
import json
import math

import numpy as np
import torch

from diagnostics.records.history import History, LayerTable
from shadowlab.views.page.heat_map import ABSENT, FIRST, INF, MAX_COLUMNS, MINUS_INF, NAN, ZERO, HeatMap
from tests.views.page.run_folders import layers, step


class Tables(History):
    """A history that has its tables already: a thousand records of 800 layers take long to write."""

    def __init__(self, values: torch.Tensor, present: torch.Tensor | None = None) -> None:
        super().__init__([])
        names = tuple(f"blocks.{i // 10}.layer{i % 10}" for i in range(values.shape[0]))
        there = torch.ones_like(values, dtype=torch.bool) if present is None else present
        self.table = LayerTable(names, tuple(range(1, values.shape[1] + 1)), values, there)

    def layers(self, statistic: str, part: str = "activation") -> LayerTable:
        return self.table


def codes(heat_map: HeatMap, key: str) -> np.ndarray:
    [content] = [one for one in heat_map.content["maps"] if one["key"] == key]
    raw = np.frombuffer(base64.b64decode(content["codes"]), "<u2")
    return raw.reshape(len(heat_map.content["layers"]), len(heat_map.content["columns"]))


def values(heat_map: HeatMap, key: str) -> np.ndarray:
    """As report.js reads them."""
    [content] = [one for one in heat_map.content["maps"] if one["key"] == key]
    share = (codes(heat_map, key).astype(float) - FIRST) / (65535 - FIRST)
    scaled = content["low"] + share * (content["high"] - content["low"])
    return 2**scaled if content["log"] else scaled


def test_values_survive_with_three_digits() -> None:
    exponents = torch.rand(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 80 - 40
    heat_map = HeatMap.of(Tables(2.0**exponents))
    assert heat_map is not None
    np.testing.assert_allclose(values(heat_map, "activation_norm"), (2.0**exponents).numpy(), rtol=1e-3)


def test_what_is_no_number_has_a_code_of_its_own() -> None:
    row = torch.tensor([[1.0, math.nan, math.inf, 0.0, math.nan, 1e300, 1e-300, -math.inf]], dtype=torch.float64)
    present = torch.ones_like(row, dtype=torch.bool)
    present[0, 4] = False
    heat_map = HeatMap.of(Tables(row, present))
    assert heat_map is not None
    found = codes(heat_map, "activation_norm")[0].tolist()
    assert found[1:5] == [NAN, INF, ZERO, ABSENT]
    assert (found[5], found[6], found[7]) == (65535, FIRST, MINUS_INF)
    assert heat_map.rows[0].not_finite == "step 2"


def test_gradients_of_a_skipped_step_are_no_fault() -> None:
    """A gradient scaler that finds its scale in the first steps, and one with a forward that overflows."""
    for bad, found in (("gradient", ["", ""]), ("activation", ["step 1", "step 1"])):
        measured = layers("a", "b")
        for parts in measured.values():
            parts[bad]["norm"] = math.inf
        heat_map = HeatMap.of(History([step(1, skipped=True, layers=measured), step(2, layers=layers("a", "b"))]))
        assert heat_map is not None and [row.not_finite for row in heat_map.rows] == found
    heat_map = HeatMap.of(History([step(1, layers=layers("a", norm=math.inf))]))
    assert heat_map is not None and heat_map.rows[0].not_finite == "step 1"


def test_a_shared_column_shows_the_worst() -> None:
    """One spike, one NaN, one Inf and one gap in 4000 steps are all seen."""
    table = torch.ones(5, 4000, dtype=torch.float64)
    present = torch.ones_like(table, dtype=torch.bool)
    table[0, 1234], table[1, 1234], table[2, 1234], table[3, 1234] = 1e6, math.nan, math.inf, 1e-6
    present[4, 1230:1240], present[4, 1250] = False, False
    heat_map = HeatMap.of(Tables(table, present))
    assert heat_map is not None and heat_map.per_column == 10
    assert len(heat_map.content["columns"]) == MAX_COLUMNS and heat_map.content["columns"][123] == (1231, 1240)
    assert math.isclose(values(heat_map, "activation_norm")[0, 123], 1e6, rel_tol=1e-3)
    norms, headroom = codes(heat_map, "activation_norm"), codes(heat_map, "headroom_bits")
    assert norms[1, 123] == NAN and norms[2, 123] == INF
    assert headroom[1, 123] == NAN and headroom[2, 123] > FIRST  # the least of nine numbers and one Inf
    assert norms[4, 123] == ABSENT and norms[4, 125] >= FIRST
    assert math.isclose(values(heat_map, "headroom_bits")[3, 123], 1e-6, abs_tol=1e6 * 1e-4)


def test_a_large_run_stays_small() -> None:
    """800 layers x 1000 steps: numbers and text below 6 MB."""
    table = torch.rand(800, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heat_map = HeatMap.of(Tables(table))
    assert heat_map is not None
    assert len(json.dumps(heat_map.content)) < 4e6
    assert [count for _, _, count in heat_map.content["blocks"]] == [10] * 80


def test_no_statistics_no_map() -> None:
    assert HeatMap.of(History([{"kind": "train", "step": 1, "loss": 1.0}])) is None
