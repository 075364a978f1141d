"""The best checkpoint: by the direction that the run's header states, proved by a planted worse one."""

from pathlib import Path

import pytest

from diagnostics.records import RecordWriter, evaluation
from shadowlab.errors import UserError
from shadowlab.runs import best_step
from shadowlab.tasks.albedo.metrics import PSNR, SI_RMSE


def records(folder: Path, values: dict[int, tuple[float, float]], **header: object) -> Path:
    """Step -> PSNR and si-RMSE."""
    file = folder / "metrics.jsonl"
    writer = RecordWriter(file)
    writer.write({"kind": "header", "metrics": [PSNR.to_json(), SI_RMSE.to_json()], **header})
    for step, (psnr, si_rmse) in values.items():
        writer.write(evaluation("validation", step, {"loss": 1.0, "psnr": psnr, "si_rmse": si_rmse}))
    writer.close()
    return file


def test_a_planted_worse_checkpoint_is_not_chosen_by_either_direction(tmp_path: Path) -> None:
    """Marigold's published configuration minimises PSNR: it would keep step 200."""
    file = records(tmp_path, {100: (20.0, 0.10), 200: (9.0, 0.40), 300: (18.0, 0.08)})
    by_psnr, by_error = best_step(file, {100, 200, 300}), best_step(file, {100, 200, 300}, "si_rmse")
    assert by_psnr is not None and (by_psnr.step, by_psnr.value) == (100, 20.0)
    assert by_error is not None and by_error.step == 300
    assert by_psnr.metric.direction == "higher is better" and by_error.metric.direction == "lower is better"


def test_only_steps_with_a_checkpoint_count_and_of_equal_ones_the_latest(tmp_path: Path) -> None:
    file = records(tmp_path, {100: (30.0, 0.1), 200: (20.0, 0.1), 300: (20.0, 0.1), 400: (float("nan"), 0.1)})
    found = best_step(file, {200, 300, 400})
    assert found is not None and found.step == 300
    assert best_step(file, {500}) is None


def test_a_metric_without_a_stated_direction_is_refused(tmp_path: Path) -> None:
    file = records(tmp_path, {100: (20.0, 0.1)})
    with pytest.raises(UserError, match="states no direction for it; it has psnr, si_rmse"):
        best_step(file, {100}, "loss")
