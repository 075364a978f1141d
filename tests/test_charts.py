"""What a task wants drawn comes out of the records as it went in; what is no chart says what is wrong with it."""

import json
from typing import Any

import pytest

from shadowlab.charts import Chart, Curve

CHART = Chart("Quality on {samples}", (Curve("R²", "r2"), Curve("soft IoU", "soft_iou")), "%")


def test_a_chart_survives_the_records() -> None:
    assert Chart.from_json(json.loads(json.dumps(CHART.to_json()))) == CHART
    assert Chart.from_json({"title": "Loss", "curves": [], "colour": "red"}) == Chart("Loss", ())


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("loss", "a chart is an object, not 'loss'"),
        ({"title": "Loss"}, "`curves` of a chart is a list of objects, not None"),
        ({"title": "Loss", "curves": ["loss"]}, "`curves` of a chart is a list of objects"),
        ({"title": "Loss", "curves": [{"label": "loss"}]}, "`key` of a chart is text, not None"),
        ({"title": 3, "curves": []}, "`title` of a chart is text, not 3"),
        ({"title": "Loss", "curves": [], "unit": None}, "`unit` of a chart is text, not None"),
    ],
)
def test_what_is_no_chart_says_why(content: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Chart.from_json(content)
