"""why: the captured step, its counterfactuals, and the error lines, through the command line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from cli.main import app
from diagnostics.errors import NonFiniteError
from diagnostics.records.lines import read_records
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.stages.run import finish_stage
from shadowlab.stages.train.train import run_train
from shadowlab.training import capture
from shadowlab.training.capture import CapturedStep, capture_step, captured_batches, captured_state
from shadowlab.training.step import StepOutcome, StepPlace, training_step
from shadowlab.training.telemetry import Telemetry
from shadowlab.training.trainee import Trainee
from tests import tiny

ALONE = SingleProcess(torch.device("cpu"))
Sabotage = Callable[[Trainee, Any], None]


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def answered(*arguments: str) -> dict[str, Any]:
    """The JSON document of a `why` that came to its end."""
    result = shadowlab("why", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def results(document: dict[str, Any]) -> dict[str, list[str]]:
    """Kind to outcomes."""
    found: dict[str, list[str]] = {}
    for outcome in document["counterfactuals"]:
        found.setdefault(outcome["kind"], []).append(outcome["result"])
    return found


def left_out(document: dict[str, Any]) -> dict[str, str]:
    return {entry["kind"]: entry["reason"] for entry in document["left_out"]}


def failed_run(
    folders: dict[str, Path], output: Path, *assignments: str, at: int = 3, sabotage: Sabotage | None = None
) -> RunFolder:
    """A train run of 2 samples a step that fails in the 0-based step `at`."""
    config = tiny.stage_config(
        folders, output, "train.max_steps=6", "checkpoint.every_steps=2", "train.validate_every=100", *assignments
    )
    original = Telemetry.step

    def spoiled(self: Any, batches: Any, place: StepPlace, **named: Any) -> StepOutcome:
        if sabotage is not None and place.step == at:
            sabotage(self._trainee, batches)
        return original(self, batches, place, **named)

    run, reporter = RunFolder.create(config, "run"), Reporter(active=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Telemetry, "step", spoiled)
        with pytest.raises(NonFiniteError):
            finish_stage("train", Session.open(config, run, ALONE, reporter), run_train)
    return run


def incident_of(run: RunFolder) -> Path:
    (incident,) = (run.path / "incidents").iterdir()
    return incident


def spoil_weights(factor: float) -> Sabotage:
    def sabotage(trainee: Trainee, _: Any) -> None:
        trainee.unet.mid_block.resnets[0].conv1.weight.data.mul_(factor)

    return sabotage


def spoil_sample(_: Trainee, batches: Any) -> None:
    batches[0].data[1, 0, 0, 0] = float("nan")


def spoil_state(trainee: Trainee, _: Any) -> None:
    trainee.unet.conv_out.bias.data[0] = float("nan")


# --- the three cases -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The seeds' regime: eps is zero in float16."""
    words = ("precision=fp16-pure", "allow_unsafe=true", "train.ema_decay=null")
    return failed_run(stage_folder, tmp_path_factory.mktemp("half"), *words)


@pytest.fixture(scope="module")
def bad_sample(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return failed_run(stage_folder, tmp_path_factory.mktemp("data"), sabotage=spoil_sample)


@pytest.fixture(scope="module")
def overflow(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return failed_run(stage_folder, tmp_path_factory.mktemp("forward"), sabotage=spoil_weights(1e38))


def test_optimizer_underflow_is_a_matter_of_precision(half: RunFolder) -> None:
    document = answered(str(half.path))
    assert (document["verdict"]["phase"], document["verdict"]["cause"]) == ("optimizer", "underflow")
    found = results(document)
    assert found["again"] == ["same fault"]
    assert found["float32"] == found["bfloat16"] == ["finite"]
    assert found["eps"][-1] == "finite"
    assert found["samples"] == ["all fail"]
    assert found["operator"][0] == "same fault"
    assert {"scale", "attention", "weights"} <= left_out(document).keys()
    conclusion = document["conclusion"]
    assert "every sample fails alone" in conclusion
    assert "a matter of precision, not of data" in conclusion


def test_a_bad_sample_is_a_matter_of_data(bad_sample: RunFolder) -> None:
    document = answered(str(bad_sample.path))
    found = results(document)
    assert found == {"again": ["same fault"], "samples": ["some fail"]}
    (samples,) = [o for o in document["counterfactuals"] if o["kind"] == "samples"]
    assert samples["numbers"]["failing"] == document["verdict"]["sample_ids"]
    assert len(samples["numbers"]["samples"]) == 2
    assert "a matter of data" in document["conclusion"]
    assert "phase data" in left_out(document)["weights"]
    assert "float32 already" in left_out(document)["float32"]


def test_an_overflow_in_the_forward_is_a_matter_of_weights(overflow: RunFolder) -> None:
    document = answered(str(incident_of(overflow)))
    assert document["verdict"]["phase"] == "forward"
    found = results(document)
    assert found["again"] == ["same fault"]
    assert found["samples"] == ["all fail"]
    assert found["weights"] == ["finite"]
    assert found["operator"] == ["same fault", "finite"]
    assert "attention is not on the path" in left_out(document)["attention"]
    assert "weights of step-00000002 are finite" in document["conclusion"]
    assert "a matter of the weights" in document["conclusion"]


def test_a_bad_state_is_kept_apart_and_repaired(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    run = failed_run(stage_folder, tmp_path, sabotage=spoil_state)
    incident = incident_of(run)
    assert CapturedStep.read(incident).bad_tensors == ("parameter conv_out.bias",)
    document = answered(str(run.path))
    found = results(document)
    assert document["verdict"]["phase"] == "state"
    assert found["again"] == ["same fault"]
    assert found["weights"] == found["repair"] == ["finite"]
    assert "go on from the last good checkpoint" in document["conclusion"]


def test_float16_overflow_that_float32_holds(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    run = failed_run(stage_folder, tmp_path, "precision=fp16", at=0, sabotage=spoil_weights(1e6))
    document = answered(str(run.path))
    assert document["verdict"]["phase"] == "forward"
    found = results(document)
    assert found["again"] == ["same fault"]
    assert found["float32"] == found["bfloat16"] == ["finite"]
    assert "train with --precision bf16" in document["conclusion"]


def test_a_scaler_that_collapsed_is_a_matter_of_its_scale(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    def raise_scale(trainee: Trainee, _: Any) -> None:
        trainee.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)

    words = ("precision=fp16", "train.max_consecutive_skips=2")
    run = failed_run(stage_folder, tmp_path, *words, at=0, sabotage=raise_scale)
    document = answered(str(run.path), "--only", "again", "--only", "scale", "--only", "samples")
    assert document["verdict"]["phase"] == "backward"
    assert results(document) == {"again": ["same fault"], "scale": ["finite"], "samples": ["all fail"]}
    assert "a matter of the loss scale" in document["conclusion"]


# --- the choice of counterfactuals -----------------------------------------------------------------------------------


def test_only_runs_what_is_named_even_without_a_reason(overflow: RunFolder) -> None:
    document = answered(str(overflow.path), "--only", "attention", "--only", "again")
    found = results(document)
    assert found.keys() == {"again", "attention"}
    assert len(found["attention"]) == 3
    assert found["attention"][0] == "same fault"  # MATH is everywhere
    assert document["left_out"] == []


def test_the_verdict_alone(overflow: RunFolder) -> None:
    result = shadowlab("why", str(overflow.path), "--no-counterfactuals")
    assert result.exit_code == 0
    assert "phase forward" in result.stdout
    assert "again" not in result.stdout.replace("gave it again", "")
    assert answered(str(overflow.path), "--no-counterfactuals").keys() == {"incident", "verdict"}


def test_lines_for_people(bad_sample: RunFolder) -> None:
    lines = shadowlab("why", str(bad_sample.path)).stdout.splitlines()
    assert any(line.startswith("the same step again: same fault") for line in lines)
    assert any(line.startswith("each of 2 samples alone: some fail") for line in lines)
    assert lines[-1].startswith("conclusion: ")


def test_a_table_on_a_terminal(bad_sample: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = shadowlab("why", str(bad_sample.path), "--only", "samples")
    assert result.exit_code == 0
    assert "what was changed" in result.stdout
    assert "some fail" in result.stdout
    assert "conclusion: " in result.stdout


def test_a_run_below_output_dir_is_found_by_its_name(half: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(half.path.parent)
    Path("runs").symlink_to(half.path.parent)
    assert shadowlab("why", "run", "--no-counterfactuals").exit_code == 0


def test_an_incident_without_a_captured_step(overflow: RunFolder, tmp_path: Path) -> None:
    """Someone's own loop under Watch: verdict and operator."""
    incident = shutil.copytree(incident_of(overflow), tmp_path / "step-00000004")
    (incident / "step.json").unlink()
    document = answered(str(incident))
    assert results(document).keys() == {"operator"}
    assert "not captured" in left_out(document)["again"]


# --- capture ---------------------------------------------------------------------------------------------------------


def test_the_captured_step_is_the_step(overflow: RunFolder) -> None:
    incident = incident_of(overflow)
    captured = CapturedStep.read(incident)
    assert captured.kind == "train"
    assert captured.place == StepPlace(3, 6, 2)
    assert captured.state_note == "kept"
    assert captured_state(incident) == incident / "state" / "step-00000003"
    (batch,) = captured_batches(incident, torch.device("cpu"))
    assert batch.positions.tolist() == [6, 7]
    assert len(batch.ids) == 2
    assert next(r for r in read_records(overflow.metrics) if r["kind"] == "incident")["state"] == "kept"


def test_a_large_state_gives_way_to_the_last_checkpoint(
    stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*arguments: Any, **named: Any) -> str:
        return capture_step(*arguments, **named, limit=1000)

    monkeypatch.setattr("shadowlab.training.telemetry.capture_step", small)
    run = failed_run(stage_folder, tmp_path, sabotage=spoil_weights(1e38))
    assert captured_state(incident_of(run)) is None
    document = answered(str(run.path))
    assert document["is_exact"] is False
    assert "the limit is" in document["from"]
    assert results(document)["again"] == ["finite"]
    assert "older weights" in document["conclusion"]


def test_a_disk_that_refuses_does_not_hide_the_finding(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(capture, "write_checkpoint", full)
    config = tiny.config_of(hub_folder, f"output_dir={tmp_path}")
    trainee = tiny.trainee_of(hub_folder)
    run = RunFolder.create(config, "run")
    telemetry = Telemetry(run, trainee, config.diagnostics, kind="overfit")
    batch = tiny.encoded_batch([0, 1])
    batch.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="No space left on device"):
        telemetry.step([batch], StepPlace(0, 0, 2))
    telemetry.close()


def test_capturing_leaves_the_trainee_as_it_was(hub_folder: Path, tmp_path: Path) -> None:
    trainee = tiny.trainee_of(hub_folder)
    training_step(trainee, [tiny.encoded_batch([0, 1])], StepPlace(0, 0, 2))
    spoil_state(trainee, None)
    before = tiny.weights_of(trainee)
    config = tiny.config_of(hub_folder, f"output_dir={tmp_path}")
    capture_step(tmp_path, RunFolder.create(config, "run"), trainee, StepPlace(1, 2, 2), kind="train")
    after = tiny.weights_of(trainee)
    assert all(torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0)) for name in before)
    assert CapturedStep.read(tmp_path).bad_tensors == ("parameter conv_out.bias",)


# --- errors ----------------------------------------------------------------------------------------------------------


def error_line(*arguments: str, code: int = 2) -> str:
    result = shadowlab("why", *arguments)
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ")
    return line


def test_wrong_paths_and_options_are_one_line(overflow: RunFolder, tmp_path: Path) -> None:
    assert "no such run or incident" in error_line("absent")
    assert "neither a run folder nor an incident" in error_line(str(tmp_path))
    assert "--only kernel: no such counterfactual; there are again" in error_line(
        str(overflow.path), "--only", "kernel"
    )
    assert "tpu" in error_line(str(overflow.path), "--device", "tpu")
    assert "CUDA" in error_line(str(overflow.path), "--device", "cuda:99", code=3)


def test_a_run_without_incident_says_so(stage_folder: dict[str, Path], tmp_path: Path, overflow: RunFolder) -> None:
    run = RunFolder.create(tiny.stage_config(stage_folder, tmp_path), "healthy")
    assert "has no incident" in error_line(str(run.path))
    records = tmp_path / "loop" / "metrics.jsonl"  # of a loop that has no config.yaml
    records.parent.mkdir()
    records.write_text('{"kind": "train", "step": 1, "loss": 0.5}\n')
    assert "has no incident" in error_line(str(records.parent))
    shutil.copytree(overflow.path, tmp_path / "healthy-overfit")
    assert "next to it: healthy-overfit" in error_line(str(run.path))


@pytest.mark.parametrize(("file", "content"), [("verdict.json", "{"), ("step.json", "[]"), ("batch.pt", "x")])
def test_damaged_incidents_are_one_line(overflow: RunFolder, tmp_path: Path, file: str, content: str) -> None:
    incident = shutil.copytree(incident_of(overflow), tmp_path / "step-00000004")
    (incident / file).write_text(content)
    result = shadowlab("why", str(incident))
    assert result.exit_code == 2
    assert file in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("change", [{"device": "abacus"}, {"device": "7"}, {"device": []}, {"precision": "__class__"}])
def test_names_that_a_captured_step_makes_up_are_one_line(
    overflow: RunFolder, tmp_path: Path, change: dict[str, Any]
) -> None:
    incident = shutil.copytree(incident_of(overflow), tmp_path / "step-00000004")
    step = incident / "step.json"
    step.write_text(json.dumps(json.loads(step.read_text()) | change))
    assert "step.json: cannot be read" in error_line(str(incident))


def test_a_batch_of_other_fields_is_one_line(overflow: RunFolder, tmp_path: Path) -> None:
    incident = shutil.copytree(incident_of(overflow), tmp_path / "step-00000004")
    torch.save({"positions": torch.arange(2), "run": "it"}, incident / "batch.pt")
    assert "batch.pt: the batch was too large" in error_line(str(incident))
    torch.save({"positions": torch.arange(2), "run": torch.ones(2)}, incident / "batch.pt")
    assert "batch.pt: holds no batch of this harness" in error_line(str(incident))


def test_a_verdict_that_is_refused_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    incident = tmp_path / "step-00000004"
    incident.mkdir()
    (incident / "verdict.json").write_text("[" * 200_000)
    assert "not a verdict (nested deeper than 64 lists and objects)" in error_line(str(incident))
    opened = os.open

    def refuse(file: Any, *arguments: Any, **options: Any) -> int:
        if Path(file).name == "verdict.json":
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert "verdict.json: cannot be read (Permission denied)" in error_line(str(incident))
