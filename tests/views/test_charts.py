"""What is drawn of a run: what the header asks for, or what the names of its numbers tell; the same everywhere."""

import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from diagnostics.records.history import History
from shadowlab.charts import Chart, Curve
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.charts import CHARTS
from shadowlab.views.charts import charts_in, guessed_charts, main_numbers, plots, plots_of
from shadowlab.views.page.curves import panels
from shadowlab.views.page.run_view import RunView
from shadowlab.views.tensorboard.rebuild import picture_tag, rebuild_board
from tests.views.page.run_folders import layers, make_run, step

METRICS = ("rmse", "si_rmse", "zncc", "soft_iou", "psnr", "ssim")
JUDGED = {"loss": 1.0, "r2": 0.4} | dict.fromkeys(METRICS, 0.5)
JUDGED |= {"loss_t0": 1.2, "loss_t0.25": 0.8} | {f"response_{name}": 0.1 for name in ("theta", "phi", "size")}
JUDGED |= {f"black_{name}": 0.2 for name in METRICS}
EDIT = Chart("Edits of {samples}", (Curve("CLIP direction", "clip_direction"), Curve("copy", "copy.clip")), "°")


def records(kind: str = "train", **header: Any) -> list[dict[str, Any]]:
    """Two steps and two evaluations, as the stages write them."""
    judged = "fixed_grid" if kind == "overfit" else "validation"
    found: list[dict[str, Any]] = [{"kind": "header", "stage": kind, **header}]
    for number in (1, 2):
        own = {"kind": kind, "loss_by_t": {"0.00-0.25": 1.0}, "grad_norm_clipped": 1.0, "step_seconds": 0.1}
        found.append(step(number) | own | {"layers": layers("conv_in", "down.0.conv")})
        found.append({"kind": judged, "step": number, **JUDGED, "clip_direction": 0.3, "copy": {"clip": 0.1}})
    return found


def shown(history: History) -> dict[str, list[str]]:
    """Title of each panel of the page with its legend."""
    return {panel.title: [one.name for one in panel.series] for panel in panels(history, plots_of(history))}


def test_a_shadow_run_is_drawn_as_ever() -> None:
    found = shown(History(records(charts=[chart.to_json() for chart in CHARTS])))
    assert found == {
        "Loss": ["training", "validation"],
        "Loss by t (0 is noise, 1 is data)": ["t 0.00-0.25"],
        "Loss by t on held-out samples": ["t 0", "t 0.25"],
        "Gradient norm": ["before clipping", "after clipping"],
        "Learning rate": ["learning rate"],
        "Quality on held-out samples": ["R²", "soft IoU"],
        "RMSE": ["model", "all black"],
        "Answer to each condition (0: unseen)": ["theta", "phi", "size"],
        "Time of a step": ["step"],
    }
    grid = shown(History(records("overfit", charts=[chart.to_json() for chart in CHARTS])))
    assert grid["Loss"] == ["training", "fixed grid"] and "Quality on the fixed grid" in grid


def test_another_task_has_its_own_charts_and_nothing_else() -> None:
    found = shown(History(records(charts=[EDIT.to_json()])))
    assert found["Edits of held-out samples"] == ["CLIP direction", "copy"]
    assert not {"RMSE", "Quality on held-out samples"} & found.keys()


def test_records_without_charts_are_drawn_by_their_names() -> None:
    """Those of earlier versions: each metric with its baseline, all answers together."""
    found = shown(History(records()))
    assert found["R² on held-out samples"] == ["R²"]
    assert found["RMSE"] == found["Si rmse"] == found["Soft iou"] == ["model", "black"]
    assert found["Answer to each condition (0: unseen)"] == ["theta", "phi", "size"]
    assert found["Clip direction on held-out samples"] == ["Clip direction"]


def test_a_loop_with_kinds_of_its_own_is_drawn(tmp_path: Path) -> None:
    """Two sets that are judged: each has charts of its own."""
    own = [step(number) | {"kind": "mine"} for number in (1, 2)]
    judged = [{"kind": kind, "step": 2, "loss": 1.0, "accuracy": 0.5} for kind in ("test_set", "validation")]
    found = shown(History([*own, *judged]))
    assert found["Loss"] == ["training", "test set", "validation"]
    assert found["Gradient norm"] == ["before clipping"]
    assert found["Accuracy on test set"] == found["Accuracy on held-out samples"] == ["Accuracy"]


def test_a_metric_whose_name_ends_in_another_is_no_baseline_of_it() -> None:
    [rmse, si_rmse] = guessed_charts(["rmse", "si_rmse", "black_rmse", "black_si_rmse", "drop_shadow_rmse"])
    assert [curve.key for curve in rmse.curves] == ["rmse", "black_rmse", "drop_shadow_rmse"]
    assert [curve.key for curve in si_rmse.curves] == ["si_rmse", "black_si_rmse"]


def test_two_charts_of_one_title_have_names_of_their_own() -> None:
    names = [plot.name for plot in plots("train", [Chart("Loss", ()), EDIT, EDIT, Chart("§", ())], ())]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


def test_main_numbers_are_those_of_the_first_chart_that_has_some() -> None:
    quality, rmse, *_ = CHARTS
    assert main_numbers(CHARTS, JUDGED) == list(zip(quality.curves, (0.4, 0.5), strict=True))
    assert main_numbers((EDIT, *CHARTS), {"rmse": 0.2, "black_rmse": 0.3}) == [
        *zip(rmse.curves, (0.2, 0.3), strict=True)
    ]
    assert main_numbers(None, JUDGED) == [(Curve("R²", "r2"), 0.4)]
    assert main_numbers((), JUDGED) == []


@pytest.mark.parametrize("charts", ["all", [3], [{"title": "Loss"}]])
def test_damaged_charts_are_named_and_the_rest_is_drawn(tmp_path: Path, charts: Any) -> None:
    run = make_run(tmp_path / "run", records(charts=charts))
    with pytest.raises(ValueError, match="`charts` of a header of metrics.jsonl: .*; remove the key from that line"):
        charts_in({"charts": charts})
    view = RunView.read(run)
    [problem] = view.problems
    assert "are drawn by the names of their numbers" in problem
    assert "R² on held-out samples" in [plot.title for plot in view.plots]
    with pytest.raises(UserError, match="`charts` of a header"):
        rebuild_board(run)


@pytest.mark.parametrize("kind", ["train", "overfit"])
@pytest.mark.parametrize("charts", [[chart.to_json() for chart in CHARTS], [EDIT.to_json()], None])
def test_tensorboard_draws_what_the_page_draws(tmp_path: Path, kind: str, charts: Any) -> None:
    """Each chart of the Custom Scalars page has a sub-run for each line of the page's panel."""
    run = make_run(tmp_path / "run", records(kind, **({} if charts is None else {"charts": charts})))
    folder = rebuild_board(run).folder
    places = sorted({file.parent for file in folder.rglob("events.out.tfevents.*")})
    events = {place: EventAccumulator(str(place), size_guidance={"tensors": 0}).Reload() for place in places}
    content = events[folder].Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    categories = [one for one in layout_pb2.Layout.FromString(content).category if one.title.startswith("00 ")]
    tags = [tag for place in places for tag in events[place].Tags()["scalars"]]
    matched = {
        chart.title: sum(any(re.match(pattern, tag) for pattern in chart.multiline.tag) for tag in tags)
        for category in categories
        for chart in category.chart
    }
    history = History.read(run / "metrics.jsonl")
    assert {title: number for title, number in matched.items() if number} == {
        title: len(lines) for title, lines in shown(history).items()
    }
    assert sorted(matched) == sorted(plot.title for plot in plots_of(history))


@pytest.mark.parametrize(
    ("stem", "tag"),
    [
        ("step-00000004", ("validation/comparison", 4)),
        ("light-sweep-step-00000012", ("validation/light_sweep", 12)),
        ("overfit-step-00000600", ("overfit/comparison", 600)),
        ("overfit-before-after-step-00000001", ("overfit/before_after", 1)),
        ("notes", None),
        ("step-4b", None),
        ("light-sweep", None),
    ],
)
def test_a_picture_s_tag_follows_from_its_name(stem: str, tag: tuple[str, int] | None) -> None:
    assert picture_tag(stem) == tag
