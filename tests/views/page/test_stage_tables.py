"""What a stage's result says of the model: metrics in words, next to what they are compared with."""

import math
from typing import Any

from shadowlab.charts import Chart, Curve, Metric
from shadowlab.tasks.shadow.charts import CHARTS
from shadowlab.views.page.stage_tables import StageTable, Vocabulary

TRAINED: dict[str, Any] = {
    "steps": 80,
    "first_validation_loss": 0.68,
    "validation_loss_fell": True,
    "loss": 0.61,
    "r2": 0.15,
    "rmse": 0.12,
    "si_rmse": 0.11,
    "psnr": 18.84,
    "ssim": 0.77,
    "loss_t0.25": 0.48,
    "response_theta": 0.02,
    "black_rmse": 0.16,
    "black_si_rmse": 0.11,
    "black_psnr": 16.6,
    "black_ssim": 0.86,
}


def table(
    summary: dict[str, Any], header: dict[str, Any] | None = None, charts: tuple[Chart, ...] = CHARTS
) -> StageTable:
    return StageTable.of("train", {"passed": True, "summary": summary}, Vocabulary.of(header or {}, charts))


def test_the_model_stands_next_to_all_black_and_the_better_one_is_marked() -> None:
    found = table(TRAINED)
    assert found.judged == ("model", "all black")  # no baseline `first validation`, none `black si`
    assert [(score.name, score.arrow, score.values, score.best) for score in found.scores] == [
        ("Loss", "↓", ("0.6100", ""), None),
        ("R²", "↑", ("0.150", ""), None),
        ("RMSE", "↓", ("0.1200", "0.1600"), 0),
        ("Scale-invariant RMSE", "↓", ("0.1100", "0.1100"), None),
        ("PSNR in dB", "↑", ("18.84", "16.60"), 0),
        ("SSIM", "↑", ("0.770", "0.860"), 1),
    ]
    assert found.figures == (
        ("Steps", "80"),
        ("First validation loss", "0.68"),
        ("Validation loss fell", "yes"),
        ("Loss at t = 0.25", "0.48"),
        ("Answer to theta (0: unseen)", "0.02"),
    )


def test_what_the_criterion_asked_for_stands_in_the_row_and_a_miss_is_seen() -> None:
    found = table({"r2": 0.9, "soft_iou": 0.85, "criterion": {"r2": 0.95, "soft_iou": 0.8, "num_samples": 16}})
    assert [(score.name, score.asked, score.missed) for score in found.scores] == [
        ("R²", "≥ 0.95", True),
        ("Soft IoU", "≥ 0.8", False),
    ]
    assert found.figures == (("Criterion: samples", "16"),)


def test_a_metric_of_another_task_is_named_by_the_header() -> None:
    header = {"metrics": [Metric("mae", "mean absolute error", higher_is_better=False).to_json(), {"name": 3}, 4]}
    charts = (Chart("MAE", (Curve("model", "mae"), Curve("plain copy", "copy_mae"))),)
    [score] = table({"mae": 0.5, "copy_mae": 0.25}, header, charts).scores
    assert (score.name, score.arrow, score.best) == ("mean absolute error", "↓", 1)
    assert table({"mae": 0.5, "copy_mae": 0.25}, header, charts).judged == ("model", "plain copy")
    assert table({"mae": 0.5, "copy_mae": 0.25}).figures == (("Mae", "0.5"), ("Copy mae", "0.25"))


def test_a_number_that_is_none_is_not_the_best() -> None:
    [score] = table({"rmse": math.nan, "black_rmse": 0.1, "criterion": {"rmse": 0.2}}).scores
    assert score.values == ("NaN", "0.1000") and score.best == 1 and score.missed
    assert table({"rmse": "NaN"}).scores == ()


def test_what_to_do_is_said_of_failed_checks_alone() -> None:
    checks = [
        {"name": "a", "passed": True, "expected": "1", "seen": "1", "mend": "turn it", "tolerated": False},
        {"name": "b", "passed": False, "expected": "1", "seen": "2", "mend": "turn it", "tolerated": False},
    ]
    [found] = table({"checks": checks}).lists
    assert found.columns == ("Name", "Passed", "Expected", "Saw", "What to do")
    assert [row[-1] for row in found.rows] == ["", "turn it"] and found.failed == {1}
