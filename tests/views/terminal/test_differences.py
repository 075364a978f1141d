"""Where two runs part."""

import math

import pytest
import torch

from diagnostics.records.history import History
from shadowlab.errors import UserError
from shadowlab.views.terminal.differences import compare, relative_difference
from shadowlab.views.terminal.statistic import find_statistic
from tests.views.records import step

NAN, INF = math.nan, math.inf
LAYERS = {"in": 1.0, "mid": 2.0, "out": 3.0}


def run(*norms: dict[str, float], every: int = 2) -> History:
    return History([step(1 + every * i, one) for i, one in enumerate(norms)])


@pytest.mark.parametrize(
    ("one", "other", "relative"),
    [
        (1.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, -0.0, 0.0),
        (2.0, 1.0, 0.5),
        (1.0, -1.0, 2.0),
        (0.0, 1.0, 1.0),
        (NAN, NAN, 0.0),
        (INF, INF, 0.0),
        (NAN, 1.0, INF),
        (INF, 1.0, INF),
        (INF, -INF, INF),
        (INF, NAN, INF),
        (1.7e308, -1.7e308, 2.0),
        (5e-324, 0.0, 1.0),
    ],
)
def test_relative_differences(one: float, other: float, relative: float) -> None:
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (one, other))
    assert float(relative_difference(a, b)) == relative
    assert float(relative_difference(b, a)) == relative


def test_a_run_is_equal_to_itself_with_its_nan() -> None:
    history = run(LAYERS | {"mid": NAN}, LAYERS | {"mid": INF})
    found = compare(history, history)
    assert found.first is None and found.rows == () and found.num_beyond == 0
    assert (found.loss_from, found.learning_rate_from, found.samples_from) == (None, None, None)
    assert (found.steps, found.step, found.num_compared) == ((1, 3), 3, 3)


def test_the_first_step_and_the_first_layer_that_ran() -> None:
    """At step 5 all differ, at step 3 `mid` and `out`: `mid` ran first."""
    one = run(LAYERS, LAYERS, LAYERS)
    other = run(LAYERS, LAYERS | {"mid": 2.002, "out": 4.0}, {"in": 2.0, "mid": 8.0, "out": NAN})
    first = compare(one, other, rtol=1e-4).first
    assert first is not None
    assert (first.step, first.name, first.statistic.name, first.place) == (3, "mid", "activation.norm", 2)
    assert (first.one, first.other) == (2.0, 2.002)
    assert first.relative == pytest.approx(0.002 / 2.002)
    tolerant = compare(one, other, rtol=1e-2)
    assert tolerant.first is not None and tolerant.first.name == "out"
    assert [(row.name, row.relative) for row in tolerant.rows] == [("out", INF), ("mid", 0.75), ("in", 0.5)]
    assert (tolerant.step, tolerant.num_beyond) == (5, 3)
    assert [row.name for row in compare(one, other, step=3, top=1).rows] == ["out"]
    assert compare(one, other, patterns=["in"]).first.step == 5  # type: ignore[union-attr]


def test_a_backward_pass_runs_from_the_last_layer() -> None:
    """Equal activations; the gradients of `in` and `mid` differ: that of `mid` is made first."""
    other = step(1, LAYERS)
    for name in ("in", "mid"):
        other["layers"][name]["gradient"]["norm"] *= 2
    first = compare(run(LAYERS), History([other])).first
    assert first is not None
    assert (first.statistic.name, first.name) == ("gradient.norm", "mid")
    assert compare(run(LAYERS), History([other]), statistic=find_statistic("norm")).first is None


def test_what_rounding_makes_of_zero_is_no_difference() -> None:
    """A bias before a norm has a gradient of 0 but for rounding: 1e-9 and 3e-9 next to 1 are float32's noise."""

    def gradient(norm: float, *others: str) -> History:
        record = step(1, dict.fromkeys(("nothing", *others), 10.0))
        record["layers"]["nothing"]["gradient"]["norm"] = norm
        record["parameters"]["nothing.weight"]["gradient_norm"] = norm
        return History([record])

    assert compare(gradient(1e-9, "big"), gradient(3e-9, "big")).first is None
    assert compare(gradient(1e-9, "big"), gradient(3e-9, "big"), patterns=["nothing*"]).first is None  # seen alone, too
    alone = compare(gradient(1e-9), gradient(3e-9)).first  # by itself it is a number
    assert alone is not None and alone.statistic.name == "gradient.norm"


@pytest.mark.parametrize("key", ["norm", "mean", "max_abs", "num_nonfinite", "fraction_zero", "headroom_bits"])
def test_a_large_layer_hides_no_activation_and_no_count(key: str) -> None:
    """1e8 in one layer next to 1.0 against 10.0 in another."""
    one, other = step(1, LAYERS), step(1, LAYERS)
    for record, value in ((one, 1.0), (other, 10.0)):
        record["layers"]["in"]["activation"][key] = 1e8
        record["layers"]["mid"]["activation"][key] = value
    found = compare(History([one]), History([other]), statistic=find_statistic(key))
    assert found.first is not None
    assert (found.first.name, found.first.relative, found.num_beyond) == ("mid", 0.9, 1)
    assert [row.name for row in found.rows] == ["mid"]


@pytest.mark.parametrize("key", ["num_nonfinite", "fraction_zero"])
def test_a_count_in_gradients_is_no_rounding(key: str) -> None:
    one, other = step(1, LAYERS), step(1, LAYERS)
    for record, value in ((one, 0), (other, 1)):
        record["layers"]["in"]["gradient"][key] = 1e8
        record["layers"]["mid"]["gradient"][key] = value
    found = compare(History([one]), History([other]), statistic=find_statistic(f"gradient.{key}"))
    assert [(row.name, row.relative) for row in found.rows] == [("mid", 1.0)]


def test_no_number_in_one_run_is_a_difference() -> None:
    other = step(1, LAYERS)
    del other["layers"]["mid"]["gradient"]
    first = compare(run(LAYERS), History([other])).first
    assert first is not None
    assert (first.name, first.one, first.other, first.relative) == ("mid", 0.2, None, INF)


def test_runs_of_other_layers_are_compared_where_they_are_alike() -> None:
    found = compare(run({"in": 1.0, "old": 5.0, "out": 3.0}), run({"in": 1.0, "new": 7.0, "out": 6.0}))
    assert (found.only_one, found.only_other) == (("old",), ("new",))
    assert [row.name for row in found.rows] == ["out"] and found.num_compared == 2
    assert found.rows[0].place == 3
    with pytest.raises(UserError, match="no layer in common"):
        compare(run({"a": 1.0}), run({"b": 1.0}))


def test_steps_that_both_measured() -> None:
    one, other = run(LAYERS, LAYERS, LAYERS), run(LAYERS, LAYERS, every=4)
    assert compare(one, other).steps == (1, 5)
    with pytest.raises(UserError, match=r"--step 3: has no activation.norm in both runs; the nearest that has is 1"):
        compare(one, other, step=3)
    with pytest.raises(UserError, match=r"the first has 3 steps, 1 to 5, the second step 2; .*statistics_every"):
        compare(one, History([step(2, LAYERS)]))
    with pytest.raises(UserError, match="the second run: no step has statistics"):
        compare(one, History([{"kind": "train", "step": 1, "loss": 1.0}]))


def test_what_every_record_says() -> None:
    """Loss, rate and samples are known at steps without statistics, too."""
    plain = {"kind": "train", "loss": 1.0, "learning_rate": 0.1, "samples": ["x"]}
    one = History([step(1, LAYERS), *({**plain, "step": i} for i in (2, 3, 4))])
    changes = ({}, {"learning_rate": 0.2}, {"samples": ["y"], "loss": NAN})
    other = History([step(1, LAYERS), *({**plain, "step": i, **c} for i, c in zip((2, 3, 4), changes, strict=True))])
    found = compare(one, other)
    assert (found.learning_rate_from, found.loss_from, found.samples_from) == (3, 4, 4)


def test_patterns_of_layers_need_not_fit_parameters() -> None:
    found = compare(run(LAYERS), run(LAYERS), patterns=["mid"])
    assert found.first is None and found.num_compared == 1
