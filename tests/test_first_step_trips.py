"""A run whose first step meets NaN has numbers: in its records, TensorBoard, the terminal and its incident."""

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from cli.main import app
from diagnostics import read_verdict_file
from diagnostics.records.history import History
from shadowlab.runs import Remedy


@pytest.fixture(scope="module")
def incident(seed_fp16: tuple[str, Path]) -> Path:
    [found] = (seed_fp16[1] / "runs").rglob("incidents/step-00000001")
    return found


@pytest.fixture(scope="module")
def run(incident: Path) -> Path:
    return incident.parents[1]


def test_the_record_has_loss_rate_and_every_layer(run: Path) -> None:
    [record] = History.read(run / "metrics.jsonl").records()
    assert record["tripped"] is True and record["step"] == 1 and len(record["samples"]) == 4
    assert all(math.isfinite(record[key]) and record[key] > 0 for key in ("loss", "grad_norm", "learning_rate"))  # type: ignore[literal-required]
    norms = [numbers["gradient_norm"] or 0.0 for numbers in record["parameters"].values()]
    assert math.hypot(*norms) == pytest.approx(record["grad_norm"], rel=1e-4)


def test_tensorboard_has_scalars_and_every_layer(run: Path) -> None:
    seen = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = seen.Tags()["scalars"]
    [record] = History.read(run / "metrics.jsonl").records()
    assert [e.value for e in seen.Scalars("overfit/loss")] == [pytest.approx(record["loss"])]
    for key in ("activation_norm", "gradient_norm"):
        assert len([tag for tag in tags if f"/{key}/" in tag]) == len(record["layers"]), key
    assert "incident/text_summary" in seen.Tags()["tensors"]
    lines = EventAccumulator(str(run / "tensorboard" / "Loss" / "training")).Reload()
    assert [e.step for e in lines.Scalars("00 run/Loss")] == [1]


def test_the_terminal_shows_the_step(run: Path) -> None:
    done = CliRunner().invoke(
        app, ["inspect", str(run), "--step", "1", "--top", "3", "--by", "gradient.norm"], env={"COLUMNS": "120"}
    )
    assert done.exit_code == 0, done.output
    assert "gradient.norm at step 1, 3 of 19" in done.output and "no update was made" in done.output


def test_the_incident_says_which_operand_what_rounded_and_what_to_type(incident: Path) -> None:
    witness = read_verdict_file(incident / "verdict.json").witness
    assert witness["roles"]["tensor2"] == "denominator" and witness["names"]["tensor2"] == "denom"
    assert witness["names"]["tensor1"].endswith(".exp_avg") and witness["zero"][0]["tensor"].endswith(".exp_avg_sq")
    remedy = Remedy.read(incident)
    assert remedy.command == "shadowlab train --config seed-fp16 --precision bf16"
    [warned] = remedy.warned
    assert warned.stage == "check-forward" and "eps 1e-08 of AdamW is 0 in float16" in warned.text
    assert len(json.loads((incident / "layers.json").read_text())) > 100
