"""`evaluate --compare A B`: samples are paired, and the counts are those of the lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from diagnostics.records import encode
from shadowlab.evaluation.comparison import FILE
from shadowlab.evaluation.lines import read_per_image
from shadowlab.evaluation.statistics import SignTest
from tests.evaluation.judged import judged, small_run

ASKED: dict[str, Any] = {"steps": (1,), "num_seeds": 2, "baselines": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = small_run(tmp_path_factory.mktemp("compared") / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        judged("fallen", root / "model", **ASKED)
        judged("drop-shadow", root / "drop", data="data", image_size=32, baselines=False)
        yield root


def compared(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["evaluate", "--compare", *words, "--device", "cpu", "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_checkpoints_are_judged_and_finished_evaluations_are_taken(world: Path) -> None:
    checkpoint = "runs/fallen/checkpoints/step-00000003"
    asked = ("--steps", "1", "--seeds", "2", "--no-baselines", "--control", "0", "--out", "out")
    found = compared(checkpoint, "model", *asked)
    assert found == encode(json.loads((world / "out" / FILE).read_text()))
    assert (world / "out/first/evaluation.html").is_file() and not (world / "out/second").exists()
    for track in found["tracks"].values():
        for row in track["pairs"]["model, 1 step"].values():
            assert (row["wins"], row["losses"], row["p"], row["difference"]) == (0, 0, 1.0, 0.0)


def test_wins_are_counted_from_the_lines(world: Path) -> None:
    found = compared("model", "drop", "--out", "pair")
    lines = [list(read_per_image(world / name)) for name in ("model", "drop")]
    sizes = {name: track["num_samples"] for name, track in found["tracks"].items()}
    assert sizes == {"all": 2, "all, trained objects": 6}  # as the model knows its objects
    for metric, sign in (("zncc", 1), ("rmse", -1)):
        gains = []
        for one, other in zip(*lines, strict=True):
            mean = sum(one["methods"]["model, 1 step"][metric]) / 2
            gains += [sign * (mean - other["methods"]["drop shadow"][metric][0])] if one["trained_on"] else []
        row = found["tracks"]["all, trained objects"]["pairs"]["model, 1 step against drop shadow"][metric]
        wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        assert SignTest.of(wins, losses, 0).to_json() == {name: row[name] for name in ("wins", "losses", "ties", "p")}
        assert row["difference"] == pytest.approx(sign * sum(gains) / 6) and row["low"] <= row["difference"]


def test_two_of_different_samples_are_refused_in_one_line(world: Path, tmp_path: Path) -> None:
    judged("all-black", tmp_path / "other", data="data", image_size=64, baselines=False)
    said = compared("model", str(tmp_path / "other"), code=2)["error"]
    assert "not of the same picture size" in said and "\n" not in said
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (world / "model").glob("*.json*"):
        text = file.read_text()
        (damaged / file.name).write_text(text.replace('"zncc": [', '"zncc": ["'[:-1] + "null, ", 1))
    said = compared("model", str(damaged), "--out", str(tmp_path / "x"), code=2)["error"]
    assert "damaged" in said and not (tmp_path / "x").exists()
