"""What a stage leaves, however it ends: its verdict in stages.json, in the records and on the screen."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics.errors import NonFiniteError
from diagnostics.records.lines import append_record, read_records
from diagnostics.verdict import Verdict
from shadowlab.console.reporter import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.errors import StageFailedError, StageStoppedError, UserError
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.settings.schema import Config
from shadowlab.stages import run as run_stage
from shadowlab.stages.result import StageResult
from shadowlab.stages.run import finish_stage

ERRORS = {
    "failed": StageFailedError("too large a loss"),
    "stopped": StageStoppedError("masks/7.png cannot be read"),
    "not finite": NonFiniteError(Verdict("forward", "overflow", "overflow", op="exp", step=499)),
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(Config(output_dir=str(tmp_path)), "run")
    for step in (499, 500):
        append_record(run.metrics, {"kind": "train", "step": step, "loss": 1.0})
    return run


def finish(run: RunFolder, outcome: StageResult | Exception) -> None:
    def stage(_: Session) -> StageResult:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    reporter = Reporter()
    try:
        finish_stage("train", Session.open(Config(), run, SingleProcess(torch.device("cpu")), reporter), stage)
    finally:
        reporter.close()


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place", ["append_record", "Board", "record_stage"])
@pytest.mark.parametrize("name", ERRORS)
def test_a_full_disk_does_not_hide_a_verdict(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    name: str,
) -> None:
    monkeypatch.setattr(RunFolder if place == "record_stage" else run_stage, place, full)
    with pytest.raises(type(ERRORS[name])) as caught:
        finish(run, ERRORS[name])
    assert caught.value is ERRORS[name]
    assert "No space left on device" in run.log.read_text()
    assert str(ERRORS[name]) in run.log.read_text()
    captured = capsys.readouterr()
    assert "not recorded in full" in captured.out + captured.err


@pytest.mark.parametrize("place", ["append_record", "Board", "record_stage"])
def test_a_full_disk_at_the_end_of_a_stage_is_one_line(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(RunFolder if place == "record_stage" else run_stage, place, full)
    with pytest.raises(
        UserError, match=r"run: cannot be written \(No space left on device\).* free the disk"
    ) as caught:
        finish(run, StageResult("train", True, {"steps": 500}, ""))
    assert caught.value.exit_code == 2
    with pytest.raises(StageFailedError, match="R.2 is too low"):
        finish(run, StageResult("train", False, {"steps": 500}, "R^2 is too low"))


@pytest.mark.parametrize("name", ERRORS)
def test_a_failure_is_recorded_at_the_last_step(run: RunFolder, name: str) -> None:
    """So steps stay monotone, and a resume from an earlier checkpoint drops it."""
    with pytest.raises(type(ERRORS[name])):
        finish(run, ERRORS[name])
    last = list(read_records(run.metrics))[-1]
    assert (last["kind"], last["step"], last["passed"]) == ("stage", 500, False)


def test_a_failure_before_the_first_step_is_recorded_at_0(tmp_path: Path) -> None:
    run = RunFolder.create(Config(output_dir=str(tmp_path)), "run")
    with pytest.raises(StageFailedError):
        finish(run, ERRORS["failed"])
    assert [record["step"] for record in read_records(run.metrics)] == [0]
