"""health as a command, on a run that is well and on records that are not; warnings while a run is under way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from diagnostics.health import RULES
from diagnostics.records.history import History
from diagnostics.records.lines import RecordWriter, read_records
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.stages.train.train import run_train
from shadowlab.training.step import StepPlace, training_step
from shadowlab.training.telemetry import Telemetry
from tests import tiny


@pytest.fixture(scope="module")
def run(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """20 steps with statistics in each, begun by a warm-up; 6 samples, so that 6 epochs pass."""
    words = ["train.max_steps=20", "diagnostics.statistics_every=1", "train.validate_every=5", "train.ema_decay=0.5"]
    words += ["optimizer.learning_rate=1e-3", "optimizer.warmup_steps=5"]
    config = tiny.stage_config(stage_folder, tmp_path_factory.mktemp("runs"), *words)
    run = RunFolder.create(config, "well")
    reporter = Reporter(active=False)
    run_train(Session.open(config, run, SingleProcess(torch.device("cpu")), reporter))
    return run


def health(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["health", *map(str, words)])


def with_records(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    writer = RecordWriter(folder / "metrics.jsonl")
    for record in records:
        writer.write(record)
    writer.close()
    return folder


def test_a_run_that_is_well(run: RunFolder) -> None:
    history = History.read(run.metrics)
    assert history.records("health") == [], "nothing was reported while it ran"
    done = health(run.path)
    assert done.exit_code == 0, done.output
    assert "20 train steps, 20 with statistics, 5 evaluations" in done.output
    assert f"{len(RULES)} rules: nothing found" in done.output


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 15])
def test_it_was_well_at_each_step(run: RunFolder, tmp_path: Path, steps: int) -> None:
    begun = [record for record in read_records(run.metrics) if record.get("step", 0) <= steps]
    done = health(with_records(tmp_path / "begun", begun))
    assert done.exit_code == 0 and "nothing found" in done.output, done.output


def test_an_alarm_is_exit_code_1_and_a_warning_is_not(run: RunFolder, tmp_path: Path) -> None:
    records = list(read_records(run.metrics))
    for record in records:
        if "response_theta" in record:
            record["response_theta"] = 5e-6
    warned = health(with_records(tmp_path / "warned", records))
    assert warned.exit_code == 0
    assert "no-response" in warned.output and "0 alarms, 1 warning" in warned.output

    for record in records:
        if record.get("step") == 10 and record["kind"] == "train":
            record["loss"] = math.nan
    folder = with_records(tmp_path / "alarmed", records)
    alarmed = health(folder, "--json")
    assert alarmed.exit_code == 1
    document = json.loads(alarmed.stdout)
    assert document["passed"] is False and document["num_measured"] == 20
    assert [(f["rule"], f["severity"], f["step"]) for f in document["findings"]] == [
        ("non-finite", "alarm", 10),
        ("no-response", "warning", 20),
    ]
    assert health(folder, "--only", "no-response", "--only", "headroom").exit_code == 0


def test_many_findings_of_one_rule_take_few_rows(run: RunFolder, tmp_path: Path) -> None:
    records = list(read_records(run.metrics))
    for record in records:
        for numbers in list(record.get("parameters", {}).values())[:20]:
            numbers |= {"update_ratio": 0.0, "gradient_norm": 0.5}
    done = health(with_records(tmp_path / "lost", records))
    assert done.exit_code == 0 and "and in 12 more" in done.output
    assert done.output.count("lost-updates") == 9


def test_an_incident_points_to_why(tmp_path: Path) -> None:
    verdict = {"phase": "forward", "exception": "overflow", "cause": "overflow", "op": "mm", "value": "inf", "step": 3}
    done = health(with_records(tmp_path / "bad", [{"kind": "incident", "step": 4, "verdict": verdict, "state": None}]))
    assert done.exit_code == 1
    assert "inf was born in mm, phase" in done.output
    assert "shadowlab why" in done.output


def test_a_failed_stage_is_an_alarm(tmp_path: Path) -> None:
    record = {"kind": "stage", "step": 0, "stage": "check-forward", "passed": False, "message": "loss is nan"}
    done = health(with_records(tmp_path / "failed", [record]), "--json")
    assert done.exit_code == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["rule"], finding["evidence"]) == ("failed-stage", "check-forward failed: loss is nan")


def test_a_run_of_which_nothing_is_recorded_is_not_passed(tmp_path: Path) -> None:
    for name, records in (("none", []), ("header", [{"kind": "header", "stage": "train", "num_samples": 4}])):
        done = health(with_records(tmp_path / name, records))
        assert done.exit_code == 2
        assert "metrics.jsonl: no step, evaluation, incident or stage is recorded" in done.output


def test_the_rules_are_listed_with_their_thresholds() -> None:
    done = health("--list")
    assert done.exit_code == 0
    for rule in RULES:
        assert rule.name in done.output and rule.threshold in done.output and rule.source in done.output
    listed = json.loads(health("--list", "--json", "--only", "headroom").stdout)
    assert [rule["name"] for rule in listed["rules"]] == ["headroom"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run, or give --list"),
        (["there", "--list"], "name a run, or give --list"),
        (["there"], "there: no such run, here or in runs/"),
        (["--only", "hedroom", "there"], "--only hedroom: no such rule; there are non-finite, failed-stage, headroom"),
        (["empty"], "empty: not a run folder (no metrics.jsonl)"),
        (["below"], "runs/below: not a run folder (no metrics.jsonl)"),
        (["unborn"], "unborn: has no metrics.jsonl: it came to no training step"),
        (["damaged"], "damaged/metrics.jsonl:1: not a JSON record"),
    ],
)
def test_wrong_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "unborn", "damaged", "runs/below"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "unborn" / "config.yaml").touch()
    (tmp_path / "damaged" / "metrics.jsonl").write_text("{half\n{}\n")
    done = health(*words)
    assert done.exit_code == 2
    assert message in done.output and done.output.count("\n") == 1


def test_a_run_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    with_records(tmp_path / "runs" / "mine", [{"kind": "train", "step": 1, "loss": 1.0}])
    monkeypatch.chdir(tmp_path)
    for words in ("mine", "runs/mine", "runs/mine/metrics.jsonl"):
        assert health(words).exit_code == 0


# --- while it trains ----------------------------------------------------------------------------------------------


def test_a_run_says_once_what_will_overflow(hub_folder: Path, tmp_path: Path) -> None:
    """To the screen, log.txt and the records; the steps are those of a run that nobody watches, bit for bit."""
    assignments = ("precision=fp16", "diagnostics.statistics_every=1", f"output_dir={tmp_path}")
    config = tiny.config_of(hub_folder, *assignments)
    run = RunFolder.create(config, "run")
    reporter = Reporter(active=True)
    reporter.console.quiet = True
    reporter.log_to(run.log)
    watched, alone = (tiny.trainee_of(hub_folder, *assignments) for _ in range(2))
    telemetry = Telemetry(run, watched, config.diagnostics, kind="train", warn=reporter.warn)
    layer = "mid_block.resnets.0.conv1"
    for trainee in (watched, alone):
        with torch.no_grad():
            trainee.unet.get_submodule(layer).weight.mul_(2.0**11)
    for number in range(8):
        for trainee in (watched, alone):
            with torch.no_grad():
                trainee.unet.get_submodule(layer).weight.mul_(2.0**0.5)
        batch, place = tiny.encoded_batch([2 * number, 2 * number + 1]), StepPlace(number, 2 * number, 2)
        telemetry.step([batch], place)
        training_step(alone, [batch], place)
    telemetry.close()
    reporter.close()
    reported = History.read(run.metrics).records("health")
    own = [f for record in reported for f in record["findings"] if (f["rule"], f["layer"]) == ("headroom", layer)]
    assert len(own) == 1 and own[0]["predicted_step"] > own[0]["step"]
    lines = [line for line in run.log.read_text().splitlines() if f"headroom in {layer}:" in line]
    assert len(lines) == 1 and lines[0].startswith(f"warning: step {own[0]['step']}: ")
    wanted, got = tiny.weights_of(alone), tiny.weights_of(watched)
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]
