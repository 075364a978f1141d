"""Pictures of layers by steps: each kind of value has its colour, any run can be drawn, bytes stay bounded."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diagnostics.records.history import LayerTable
from shadowlab.views import layer_map
from shadowlab.views.charts import LayerMap
from shadowlab.views.layer_map import LayerColumns
from shadowlab.views.tensorboard import heat_maps, layer_picture
from shadowlab.views.tensorboard.board import Board
from shadowlab.views.tensorboard.heat_maps import HeatMaps
from shadowlab.views.tensorboard.layer_picture import draw_heat_map, to_png

NORM = LayerMap("norm", "Norm", "activation", "norm")
HEADROOM = replace(NORM, is_log=False, low_is_worse=True)
PINK, BLACK, GREY = (255, 0, 160), (0, 0, 0), (222, 222, 222)


def table(values: Sequence[Sequence[float | None]]) -> LayerTable:
    """None: not measured."""
    names = tuple(f"blocks.{i // 2}.layer{i}" for i in range(len(values)))
    number = torch.tensor([[math.nan if v is None else v for v in row] for row in values], dtype=torch.float64)
    present = torch.tensor([[v is not None for v in row] for row in values], dtype=torch.bool)
    columns = number.shape[1] if number.ndim == 2 else 0
    shape = (len(values), columns)
    return LayerTable(names, tuple(range(1, columns + 1)), number.reshape(shape), present.reshape(shape))


def cells(picture: Image.Image, rows: int, columns: int, row: int = 12, cell: int = 48) -> list[list[Any]]:
    """Colour in the middle of each cell; the plot ends 130 + ... pixels before the right edge."""
    left = picture.width - 130 - max(columns * cell, 280)
    colours = picture.convert("RGB")
    return [
        [colours.getpixel((left + c * cell + cell // 2, 26 + r * row + row // 2)) for c in range(columns)]
        for r in range(rows)
    ]


def brightness(colour: tuple[int, int, int]) -> float:
    return sum(colour)


def test_each_kind_of_value_has_its_colour() -> None:
    values = [[1e-6, 1.0], [math.nan, math.inf], [0.0, None], [1e-3, 1e-3]]
    seen = cells(draw_heat_map(table(values), NORM), 4, 2)
    assert seen[1] == [PINK, PINK]
    assert seen[2] == [BLACK, GREY]
    assert brightness(seen[0][0]) < brightness(seen[3][0]) < brightness(seen[0][1])
    assert len({*seen[0], seen[3][0], PINK, BLACK, GREY}) == 6


def test_little_headroom_is_bright() -> None:
    seen = cells(draw_heat_map(table([[1.0, 8.0], [math.inf, -math.inf], [math.nan, 15.0]]), HEADROOM), 3, 2)
    assert brightness(seen[0][0]) > brightness(seen[0][1]) > brightness(seen[2][1])
    assert seen[1] == [BLACK, PINK] and seen[2][0] == PINK


@pytest.mark.parametrize(
    "values",
    [[], [[]], [[math.nan]], [[None]], [[0.0]], [[1.0]], [[math.inf, math.nan]], [[1e-320, 1e300]], [[1.0]] * 500],
    ids=["no layer", "no step", "NaN", "absent", "zero", "one", "nothing finite", "extreme", "many rows"],
)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("drawn", [NORM, HEADROOM])
def test_any_run_can_be_drawn(values: list[list[float]], named: bool, drawn: LayerMap) -> None:
    picture = draw_heat_map(table(values), drawn, named=named)
    assert picture.width > 400 and picture.height > 200


def test_one_explosion_does_not_flatten_the_rest() -> None:
    values = [[10.0 ** (i % 5) for i in range(40)] for _ in range(5)]
    values[0][0] = 1e30
    low, high = layer_picture.colour_ends(table(values), NORM)
    assert 0 <= low < 1 and high == 4


def layers_of(**norms: float) -> dict[str, Any]:
    return {name: {"activation": {"norm": norm}} for name, norm in norms.items()}


def test_long_runs_keep_what_happened_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spike and a NaN survive any number of mergers, in the column whose last step is theirs or later."""
    monkeypatch.setattr(layer_map, "MAX_COLUMNS", 8)
    columns = LayerColumns(NORM)
    for step in range(1, 101):
        columns.add(step, layers_of(a=100.0 if step == 37 else 1.0, b=math.nan if step == 73 else 2.0))
    columns.add(101, layers_of(a=1.0, b=2.0, late=3.0))
    seen = columns.table()
    assert len(seen.steps) <= 8 and seen.steps[-1] == 101 and list(seen.steps) == sorted(seen.steps)
    a = dict(zip(seen.steps, seen.values[0].tolist(), strict=True))
    assert [step for step, value in a.items() if value == 100.0] == [next(s for s in seen.steps if s >= 37)]
    bad = [step for step, value in zip(seen.steps, seen.values[1].tolist(), strict=True) if math.isnan(value)]
    assert bad == [next(s for s in seen.steps if s >= 73)]
    assert seen.present[2].tolist() == [False] * (len(seen.steps) - 1) + [True]


def test_headroom_keeps_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_map, "MAX_COLUMNS", 2)
    columns = LayerColumns(HEADROOM)
    for step, bits in enumerate((9.0, 2.0, 8.0, 7.0), 1):
        columns.add(step, layers_of(a=bits))
    assert columns.table().values.tolist() == [[2.0, 7.0]]


def test_redraws_are_few_and_pages_have_every_name() -> None:
    maps, overviews, pages = HeatMaps(), 0, set()
    layers = {f"blocks.{i // 50}.layer{i}": {"activation": {"norm": 1.0}} for i in range(150)}
    for step in range(1, 101):
        maps.add({"step": step, "layers": layers})
        if maps.are_due:
            drawn = list(maps.draw())
            overviews += sum(page.tag == "00 run, heat map of activation_norm/00 all layers" for page in drawn)
            pages |= {page.tag for page in drawn if "gradient_norm" in page.tag}
    assert overviews == 5  # at 4, 8, 16, 32, 64
    assert pages == {
        "00 run, heat map of gradient_norm/00 all layers",
        "00 run, heat map of gradient_norm/01 blocks.0",
        "00 run, heat map of gradient_norm/02 blocks.1",
        "00 run, heat map of gradient_norm/03 blocks.2",
    }
    assert maps.are_stale
    assert len(list(maps.draw(last=True))) == 2 * 4  # no headroom was measured
    assert not maps.are_stale


@pytest.mark.parametrize("num_layers", [2, 73])
def test_at_the_end_every_picture_is_of_the_last_step(
    num_layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the overview was due at that very step; and none is drawn twice at one step."""
    monkeypatch.setattr(heat_maps, "draw_heat_map", lambda *_, **__: Image.new("P", (2, 2)))
    layers = {f"layer{i}": {"activation": {"norm": 1.0}} for i in range(num_layers)}
    for num_steps in (1, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 128, 129):
        drawn: dict[str, list[int]] = {}
        board = Board(tmp_path / str(num_steps))
        monkeypatch.setattr(board, "png", lambda tag, _, __, step, to=drawn, **___: to.setdefault(tag, []).append(step))
        for step in range(1, num_steps + 1):
            board.write({"kind": "train", "step": step, "layers": layers})
        board.close()
        assert len(drawn) == (2 if num_layers == 2 else 2 * 3)
        assert {tag: steps[-1] for tag, steps in drawn.items()} == dict.fromkeys(drawn, num_steps)
        assert all(len(set(steps)) == len(steps) for steps in drawn.values())


def test_pictures_of_a_thousand_steps_stay_below_7_mb() -> None:
    """878 layers of noise: of the sizes at 64 and 128 columns and the number of redraws follows the sum."""
    random = torch.Generator().manual_seed(0)

    def bytes_of(rows: int, columns: int, *, named: bool) -> int:
        names = tuple(
            f"up_blocks.{i // 300}.attentions.{i % 3}.transformer_blocks.{i % 10}.ff.net.0" for i in range(rows)
        )
        values = torch.randn(rows, columns, generator=random, dtype=torch.float64).exp()
        there = torch.ones(rows, columns, dtype=torch.bool)
        steps = tuple(range(columns))
        return len(to_png(draw_heat_map(LayerTable(names, steps, values, there), NORM, named=named)))

    maps, at = HeatMaps(), []
    for number in range(1, 1001):
        maps._num_measured = number
        if maps.are_due:
            at.append((number, maps.skip()))
    at.append((1000, maps.skip(last=True)))
    assert [number for number, _ in at] == [4, 8, 16, 32, 64, 128, 256, 512, 1000]
    half = {True: bytes_of(72, 64, named=True), False: bytes_of(878, 64, named=False)}
    full = {True: bytes_of(72, 128, named=True), False: bytes_of(878, 128, named=False)}
    total = 0
    for number, with_pages in at:
        size = half if number < 128 or number in (128, 256, 512) else full  # merged to half when the columns were full
        total += 3 * (size[False] + with_pages * math.ceil(878 / heat_maps.MAX_NAMED_ROWS) * size[True])
    assert total < 7e6, total
