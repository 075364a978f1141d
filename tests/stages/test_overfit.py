"""overfit as a stage: when it passes, when it fails, what it says and leaves behind."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnostics.records.lines import read_records
from shadowlab.console.reporter import Reporter
from shadowlab.distributed.processes import SingleProcess
from shadowlab.errors import StageFailedError, UserError
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.settings.schema import Config
from shadowlab.stages.overfit import overfit, run_overfit
from shadowlab.stages.result import StageResult
from shadowlab.stages.run import finish_stage
from shadowlab.training.step import StepOutcome
from tests import tiny


def finished(config: Config, name: str = "overfit") -> tuple[RunFolder, StageResult]:
    run, reporter = RunFolder.create(config, name), Reporter(active=False)
    alone = SingleProcess(torch.device("cpu"))
    return run, finish_stage("overfit", Session.open(config, run, alone, reporter), run_overfit)


def test_two_steps_are_not_enough(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    config = tiny.stage_config(stage_folder, tmp_path)
    with pytest.raises(StageFailedError) as caught:
        finished(config)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    for words in ("after 2 steps", "needs 0.95", "needs 0.8", "--max-steps", "--set overfit.learning_rate"):
        assert words in message
    run = RunFolder(tmp_path / "overfit")
    entry = run.stages()["overfit"]
    assert entry["passed"] is False
    assert entry["summary"]["steps"] == 2
    assert (run.samples / "overfit-step-00000002.png").is_file()
    assert [r["step"] for r in read_records(run.metrics) if r["kind"] == "overfit"] == [1, 2]
    assert [r["step"] for r in read_records(run.metrics) if r["kind"] == "fixed_grid"] == [2]


def test_it_stops_when_the_criterion_is_met(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    words = ("overfit.min_r2=-1e9", "overfit.min_soft_iou=0", "overfit.max_steps=50", "overfit.evaluate_every=3")
    run, result = finished(tiny.stage_config(stage_folder, tmp_path, *words))
    assert result.passed
    assert result.message == ""
    assert result.summary["steps"] == 3
    assert run.stages()["overfit"]["passed"] is True


def test_it_learns(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """The loss on the fixed grid falls clearly below 1: what a silent model pays for the noise alone."""
    words = ("overfit.max_steps=40", "overfit.learning_rate=5e-3", "overfit.evaluate_every=20", "overfit.min_r2=-1e9")
    config = tiny.stage_config(stage_folder, tmp_path, *words, "overfit.min_soft_iou=1")
    with pytest.raises(StageFailedError):
        finished(config)
    losses = [r["loss"] for r in read_records(tmp_path / "overfit" / "metrics.jsonl") if r["kind"] == "fixed_grid"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9


@pytest.mark.parametrize("num_samples", [1, 3])
def test_few_samples_fill_the_batch(
    stage_folder: dict[str, Path], tmp_path: Path, num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes several times in a step, with other noise and t: one sample alone gives gradients of pure noise."""
    seen: list[tuple[list[str], list[int], int]] = []
    original = overfit.Telemetry.step

    def noting(self: Any, batches: Any, place: Any) -> StepOutcome:
        seen.append((batches[0].ids, batches[0].positions.tolist(), place.global_batch))
        return original(self, batches, place)

    monkeypatch.setattr(overfit.Telemetry, "step", noting)
    words = (f"overfit.num_samples={num_samples}", "overfit.batch_size=8", "overfit.min_r2=-1e9")
    finished(tiny.stage_config(stage_folder, tmp_path, *words, "overfit.min_soft_iou=0"))
    assert [positions for _, positions, _ in seen] == [list(range(8)), list(range(8, 16))]
    for ids, _, global_batch in seen:
        counts = Counter(ids)
        assert len(counts) == num_samples
        assert max(counts.values()) - min(counts.values()) <= 1 + (num_samples > 1)
        assert global_batch == len(ids)


def test_more_samples_than_there_are(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 8 samples; --samples 9 is too many"):
        finished(tiny.stage_config(stage_folder, tmp_path, "overfit.num_samples=9"))
