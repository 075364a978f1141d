"""`shadowlab runs`: the table that is read, piped and parsed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.tasks.shadow.charts import CHARTS
from tests.views.page.run_folders import make_run, stage, step

JUDGED = {"kind": "validation", "step": 200, "loss": 1.0, "r2": 0.95219, "soft_iou": 0.871, "black_soft_iou": 0.0}


@pytest.fixture(autouse=True)
def _runs() -> None:
    """Names as long as the default ones, every column at its widest, and a damaged neighbour."""
    header = {"kind": "header", "stage": "train", "charts": [chart.to_json() for chart in CHARTS]}
    incident = {"kind": "incident", "step": 149_412, "verdict": {"value": "nan"}}
    long = [header, step(149_411), JUDGED, incident]
    make_run(Path("runs/sdxl-4xh100-train-20261121T204446Z"), long)
    make_run(Path("runs/tiny-check-precision-20261121T150838Z"), stages={"check-precision": stage()})
    (make_run(Path("runs/broken")) / "stages.json").write_text("{")
    Path("runs/notes").mkdir()


def runs(*words: str) -> str:
    result = CliRunner().invoke(app, ["runs", *words])
    assert result.exit_code == 0, result.output
    return result.stdout if "--json" in words else result.output


def test_a_piped_table_has_at_most_80_columns_and_loses_nothing() -> None:
    lines = runs().splitlines()
    table = [line for line in lines if not line.startswith("warning")]
    assert max(map(len, table)) <= 80 and "…" not in "".join(table)
    for name in ("sdxl-4xh100-train-20261121T204446Z", "tiny-check-precision-20261121T150838Z", "broken", "notes"):
        assert name in table  # whole, at the head of what is said of it
    words = " ".join(" ".join(table).split())
    for shown in ("NaN at step 149412", "R² 0.952, soft IoU 0.871", "check-precision", "not a run", "damaged"):
        assert shown in words, shown
    assert [line for line in lines if line.startswith("warning: broken: ")]


def test_the_document_has_every_run() -> None:
    document = json.loads(runs("--json"))
    found = {one["name"]: one for one in document["runs"]}
    train = found["sdxl-4xh100-train-20261121T204446Z"]
    assert (train["stage"], train["state"], train["step"]) == ("train", "NaN at step 149412", 149_412)
    assert train["quality"] == {"r2": 0.95219, "soft_iou": 0.871}
    assert train["bytes"] > 100 and 0 <= train["age_seconds"] < 600 and train["run"] == f"runs/{train['name']}"
    assert found["notes"]["state"] == "not a run" and found["notes"]["last_activity"] is None
    assert "stages.json: not JSON" in found["broken"]["problem"]


def test_another_folder_can_be_named() -> None:
    make_run(Path("mine/run"), [step(1)])
    assert "interrupted" in runs("mine") and "sdxl" not in runs("mine")
    Path("empty").mkdir()
    assert runs("empty") == "empty: no run yet; `shadowlab overfit` makes one\n"
    result = CliRunner().invoke(app, ["runs", "absent"])
    assert result.exit_code == 2 and result.output.startswith("error: absent: no folder of runs")
