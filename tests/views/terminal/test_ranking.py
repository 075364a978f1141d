"""Layers by a statistic at a step, and one layer over time."""

import math
from typing import Any

import pytest

from diagnostics.records.history import Curve, History
from shadowlab.errors import UserError
from shadowlab.views.terminal.ranking import Ranking, find_layer, rank, summarize
from shadowlab.views.terminal.statistic import ALL, find_statistic
from tests.views.records import statistics, step

NAN, INF = math.nan, math.inf


def names(found: Ranking) -> list[str]:
    return [row.name for row in found.rows]


def history_of(column: dict[str, float], key: str = "norm") -> History:
    layers = {name: {"activation": {key: value}} for name, value in column.items()}
    return History([{"kind": "train", "step": 1, "layers": layers}])


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("headroom", "activation.headroom_bits"),
        ("norm", "activation.norm"),
        ("max_abs", "activation.max_abs"),
        ("Max-Abs", "activation.max_abs"),
        ("gradient.norm", "gradient.norm"),
        ("gradient_norm", "gradient.norm"),  # as in TensorBoard
        ("gradient.headroom", "gradient.headroom_bits"),
        ("update_ratio", "parameter.update_ratio"),
        ("parameter gradient norm", "parameter.gradient_norm"),
        *((one.name, one.name) for one in ALL),
    ],
)
def test_statistics_by_full_and_short_names(name: str, full: str) -> None:
    assert find_statistic(name).name == full


@pytest.mark.parametrize("name", ["headrom", "", "gradient.nrm"])
def test_unknown_statistics_are_listed_with_the_nearest(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find_statistic(name)
    text = str(caught.value)
    assert text.startswith(f"--by {name}: no such statistic; the nearest is `")
    assert all(one.name in text for one in ALL)
    assert name != "headrom" or "nearest is `activation.headroom_bits`" in text


def test_nan_comes_first_then_what_asks_for_attention() -> None:
    column = {"a": 1.0, "nan": NAN, "b": 3.0, "inf": INF, "c": 3.0, "-inf": -INF}
    norm, headroom = find_statistic("norm"), find_statistic("headroom")
    largest = rank(history_of(column), norm)
    assert names(largest) == ["nan", "inf", "b", "c", "a", "-inf"]
    assert [row.place for row in largest.rows] == [2, 4, 3, 5, 1, 6]
    assert names(rank(history_of(column), norm, ascending=True)) == ["nan", "-inf", "a", "b", "c", "inf"]
    least = rank(history_of(column, "headroom_bits"), headroom)
    assert names(least) == ["nan", "-inf", "a", "b", "c", "inf"]
    assert names(rank(history_of(column, "headroom_bits"), headroom, ascending=False, top=2)) == ["nan", "inf"]
    assert (largest.num_ranked, largest.step, largest.absent) == (6, 1, ())


def test_a_mean_counts_by_its_size() -> None:
    column = {"a": -5.0, "b": 1.0, "c": 3.0}
    assert names(rank(history_of(column, "mean"), find_statistic("mean"))) == ["a", "c", "b"]


def test_the_last_measured_step_and_what_it_lacks() -> None:
    late: dict[str, Any] = step(6, {"a": 1.0, "b": 2.0})
    del late["layers"]["b"]["gradient"]
    late["parameters"]["a.weight"]["update_ratio"] = None
    history = History([step(2, {"a": 1.0, "b": 2.0}), step(4, {"a": 9.0}), late, {"kind": "train", "step": 7}])
    found = rank(history, find_statistic("gradient.norm"))
    assert (found.step, names(found), found.absent) == (6, ["a"], ("b",))
    assert list(found.rows[0].curve) == [(2, 0.1), (4, 0.9), (6, 0.1)]
    assert found.rows[0].record["activation"] == statistics(1.0)
    ratios = rank(history, find_statistic("update_ratio"))
    assert (names(ratios), ratios.absent) == (["b.weight"], ("a.weight",))
    assert names(rank(history, find_statistic("norm"), step=4)) == ["a"]
    assert names(rank(history, find_statistic("norm"), patterns=["b*"])) == ["b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step": 5}, "--step 5: has no activation.norm; the nearest that has is 4 (2 steps, 2 to 4)"),
        ({"step": -3}, "the nearest that has is 2"),
        ({"patterns": ["mid.*"]}, "--layers mid.*: matches none of 2 layers; the nearest: mid_block"),
        ({"patterns": ["*", "x*"]}, "--layers x*: matches none"),
    ],
)
def test_what_is_not_there_is_reported_with_what_is(arguments: dict[str, Any], words: str) -> None:
    history = History([step(2, {"mid_block": 1.0, "out": 2.0}), step(4, {"mid_block": 1.0, "out": 2.0})])
    with pytest.raises(UserError) as caught:
        rank(history, find_statistic("norm"), **arguments)
    assert words in str(caught.value)


def test_a_statistic_that_no_record_has() -> None:
    with pytest.raises(UserError, match="--by activation.headroom_bits: no step of this run has it"):
        rank(history_of({"a": 1.0}), find_statistic("headroom"))


def test_a_layer_by_its_name_or_by_what_only_it_has() -> None:
    known, norm = ["mid.conv1", "mid.conv10", "down.norm"], find_statistic("norm")
    assert find_layer(known, "mid.conv1", norm) == "mid.conv1"  # though another begins so
    assert find_layer(known, "*conv10", norm) == "mid.conv10"
    assert find_layer(known, "down", norm) == "down.norm"
    with pytest.raises(UserError, match="means 2 layers, name one: mid.conv1, mid.conv10"):
        find_layer(known, "mid", norm)
    with pytest.raises(UserError, match="none of 3 layers of this name; the nearest: down.norm"):
        find_layer(known, "dawn.norm", norm)


def test_a_course_in_numbers() -> None:
    course = summarize(Curve((1, 2, 4, 6, 8), (3.0, NAN, -1.0, INF, 2.0)))
    assert (course.first, course.last) == ((1, 3.0), (8, 2.0))
    assert (course.lowest, course.highest) == ((4, -1.0), (1, 3.0))
    assert (course.num_steps, course.num_nonfinite, course.first_nonfinite) == (5, 2, 2)
    alone = summarize(Curve((3,), (NAN,)))
    assert alone.lowest is None and alone.highest is None and alone.first_nonfinite == 3
