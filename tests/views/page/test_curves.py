"""Curves: nothing that matters is lost to their size, and axes hold for all numbers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from diagnostics.records.history import Curve, History
from shadowlab.views.charts import plots_of
from shadowlab.views.page import curves
from shadowlab.views.page.axis import Axis, label
from shadowlab.views.page.curves import Drawing, Panel, decimated, draw, smoothed
from tests.views.page.run_folders import step

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def panels(history: History) -> list[Panel]:
    return curves.panels(history, plots_of(history))


def drawings(history: History) -> list[Drawing]:
    return curves.drawings(history, plots_of(history))


@given(st.lists(FINITE, min_size=1, max_size=5))
def test_axes_hold_for_all_numbers(values: list[float]) -> None:
    axis = Axis.over(values, 216, 16)
    assert axis.low < axis.high
    assert all(15.9 <= axis.place(value) <= 216.1 for value in values)
    ticks = axis.ticks()
    assert len(ticks) <= 9 and all(15.9 <= place <= 216.1 for place, _ in ticks)


def test_ticks_are_round_numbers() -> None:
    assert [text for _, text in Axis.of_steps(0, 200, 0, 1).ticks(whole=True)] == ["0", "50", "100", "150", "200"]
    assert [text for _, text in Axis.of_steps(7, 7, 0, 1).ticks(whole=True)] == ["7"]
    log = Axis.over([1e-5, 2e-2], 0, 1)
    assert log.is_log and [text for _, text in log.ticks()] == ["1e-5", "1e-4", "0.001", "0.01"]
    assert [label(v) for v in (0.0, 0.25, 12345.0, 3e8, -2e-7)] == ["0", "0.25", "12.345k", "3e8", "-2e-7"]


def test_decimation_keeps_extremes_and_every_first_nan() -> None:
    values = [math.sin(i / 50) for i in range(20_000)]
    values[7_777], values[8_888], values[9_999], values[10_000] = 9.0, -9.0, math.nan, math.nan
    small = decimated(Curve(tuple(range(20_000)), tuple(values)))
    assert len(small) <= 2 * 300 + 3
    points = dict(small)
    assert points[7_777] == 9.0 and points[8_888] == -9.0
    assert math.isnan(points[9_999]) and 10_000 not in points
    assert small.steps[0] == 0 and small.steps[-1] == 19_999
    assert list(small.steps) == sorted(small.steps)


def test_a_gap_is_left_where_a_value_is_not_finite() -> None:
    losses = [3.0, 2.0, math.nan, 1.0, 0.5, math.inf, 0.4]
    history = History([step(i, loss=loss) for i, loss in enumerate(losses, 1)] + [{"kind": "incident", "step": 8}])
    [loss] = [d for d in drawings(history) if d.panel.key == "loss"]
    assert [len(points.split()) for points in loss.lines[0].pieces] == [2, 2]  # and one point alone
    assert [words for _, _, words in loss.events] == [
        "step 3: training is NaN",
        "step 6: training is Inf",
        "step 8: incident",
    ]
    assert "2 values NaN or Inf, first at step 3" in loss.panel.summary
    assert "lowest 0.4 (step 7), highest 3 (step 1)" in loss.panel.summary


def test_the_gradient_norm_of_a_skipped_step_is_no_fault() -> None:
    """fp16: the scaler finds its scale in 3 of 1000 steps; then one step goes wrong for good, right after a skip."""
    records = [step(i) for i in range(1, 1001)]
    for at in (1, 2, 700):
        records[at - 1] |= {"skipped": True, "grad_norm": math.inf}
    records[700]["grad_norm"] = math.nan
    [norm] = [d for d in drawings(History(records)) if d.panel.key == "gradient-norm"]
    assert [(sign, words) for _, sign, words in norm.events] == [
        ("mark", "step 1: the gradient scaler skipped it"),
        ("mark", "step 2: the gradient scaler skipped it"),
        ("mark", "step 700: the gradient scaler skipped it"),
        ("bad", "step 701: before clipping is NaN"),
    ]
    assert "1 value NaN or Inf, first at step 701; NaN or Inf in 3 skipped steps" in norm.panel.summary
    records[0]["loss"] = math.inf  # the forward pass has no scale to blame
    [loss] = [d for d in drawings(History(records)) if d.panel.key == "loss"]
    assert ("bad", "step 1: training is Inf") in [(sign, words) for _, sign, words in loss.events]


def test_panels_without_a_point_are_left_out() -> None:
    records = [step(i, loss_by_t={"0.00-0.25": 1.0}, skipped=i == 2) for i in (1, 2)]
    found = panels(History(records))
    assert [panel.key for panel in found] == ["loss", "loss-by-t", "gradient-norm", "learning-rate"]
    assert draw(found[0], 1, 2).events[0][2] == "step 2: the gradient scaler skipped it"
    assert panels(History([])) == [] and drawings(History([])) == []


def test_loss_by_t_is_drawn_as_a_running_mean_over_its_points() -> None:
    """Alternating 1 and 3: the mean is 2, and no extreme of the points is lost."""
    records = [step(i, loss_by_t={"0.00-0.25": 1.0 + 2 * (i % 2)}) for i in range(1, 2001)]
    mean = smoothed(History(records).curve("loss_by_t.0.00-0.25"))
    assert all(abs(value - 2) < 0.03 for value in mean.values) and mean.steps[0] == 1 and len(mean) <= 334
    [loss] = [d for d in drawings(History(records)) if d.panel.key == "loss-by-t"]
    [line] = loss.lines
    low, high = (next(y for y, text in loss.y_ticks if text == value) for value in ("1", "3"))
    marked = {float(piece.split()[1].removesuffix("h0")) for piece in line.faint.split("M")[1:]}
    assert min(marked) == round(high) and max(marked) == round(low) and not line.dots and loss.is_smooth
    [few] = [d for d in drawings(History(records[:30])) if d.panel.key == "loss-by-t"]
    assert not few.lines[0].faint and len(few.lines[0].dots) == 30


def test_a_value_that_is_not_finite_is_marked_where_the_mean_is_drawn() -> None:
    records = [step(i, loss_by_t={"0.00-0.25": math.nan if i == 50 else 1.0}) for i in range(1, 101)]
    [loss] = [d for d in drawings(History(records)) if d.panel.key == "loss-by-t"]
    assert [words for _, _, words in loss.events] == ["step 50: t 0.00-0.25 is NaN"]
    assert len(loss.lines[0].pieces) == 1
