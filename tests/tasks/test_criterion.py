"""What `overfit` asks for, and what an earlier one proved."""

import math

import pytest

from shadowlab.tasks.task import Criterion, Metric

IOU, ERROR = Metric("iou", "IoU"), Metric("mae", "error", higher_is_better=False)
CRITERION = Criterion(((IOU, 0.8), (ERROR, 0.1)))


@pytest.mark.parametrize(
    ("iou", "error", "met"),
    [(0.8, 0.1, True), (0.9, 0.0, True), (0.79, 0.1, False), (0.8, 0.11, False), (math.nan, 0.1, False)],
)
def test_each_metric_keeps_its_bound_in_its_own_direction(iou: float, error: float, met: bool) -> None:
    assert CRITERION.met_by({"iou": iou, "mae": error, "other": 0.0}) == met


@pytest.mark.parametrize(
    ("recorded", "covers"),
    [
        ({"iou": 0.8, "mae": 0.1, "num_samples": 3}, True),
        ({"iou": 0.9, "mae": 0.05}, True),
        ({"iou": 0.7, "mae": 0.1}, False),
        ({"iou": 0.8, "mae": 0.2}, False),
        ({"iou": 0.8}, False),
        ({"iou": 0.8, "mae": "0.1"}, False),
        ({"iou": 0.8, "mae": math.nan}, False),
    ],
)
def test_an_easier_criterion_of_an_earlier_run_proves_nothing(recorded: dict[str, object], covers: bool) -> None:
    assert CRITERION.covered_by(recorded) == covers
    assert CRITERION.covered_by(CRITERION.to_json())


def test_it_is_said_in_words() -> None:
    assert CRITERION.text() == "IoU >= 0.8 and error <= 0.1"
    assert CRITERION.missed_text({"iou": 0.5, "mae": 0.25}) == "IoU is 0.500 (needs 0.8) and error 0.250 (needs 0.1)"
