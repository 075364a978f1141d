"""WHDR and the files of comparisons."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shadowlab.errors import UserError
from shadowlab.tasks.albedo.ordering import read_comparisons

POINTS = [
    {"id": 1, "x": 0.1, "y": 0.1, "opaque": True},
    {"id": 2, "x": 0.9, "y": 0.1, "opaque": True},
    {"id": 3, "x": 0.1, "y": 0.9, "opaque": True},
    {"id": 4, "x": 0.5, "y": 0.5, "opaque": False},
]


def written(folder: Path, rows: list[tuple[Any, Any, str, Any]], points: Any = POINTS) -> Path:
    comparisons = [
        {"point1": one, "point2": other, "darker": darker, "darker_score": score} for one, other, darker, score in rows
    ]
    file = folder / "a.json"
    file.write_text(json.dumps({"intrinsic_points": points, "intrinsic_comparisons": comparisons}))
    return file


def picture(left: float, right: float, below: float) -> torch.Tensor:
    """(3, 10, 10) linear: point 1 left, 2 right, 3 below."""
    found = torch.full((3, 10, 10), left)
    found[:, :, 5:] = right
    found[:, 5:, :5] = below
    return found


def test_the_share_of_contradicted_comparisons_by_weight(tmp_path: Path) -> None:
    comparisons = read_comparisons(written(tmp_path, [(1, 2, "1", 0.5), (2, 3, "2", 0.25), (1, 3, "E", 0.25)]))
    assert comparisons.disagreement(picture(0.2, 0.8, 0.2)) == 0
    assert comparisons.disagreement(picture(0.8, 0.2, 0.8)) == pytest.approx(0.75)
    assert comparisons.disagreement(picture(0.2, 0.8, 0.4)) == pytest.approx(0.25)
    assert comparisons.disagreement(picture(0.5, 0.5, 0.5)) == pytest.approx(0.75)  # a grey picture is not half right


@pytest.mark.parametrize(("ratio", "wrong"), [(1.09, 0.0), (1.12, 1.0)])
def test_a_tenth_counts_as_equal(tmp_path: Path, ratio: float, wrong: float) -> None:
    comparisons = read_comparisons(written(tmp_path, [(1, 2, "E", 1.0)]))
    assert comparisons.disagreement(picture(0.5, 0.5 * ratio, 0.1)) == wrong


def test_points_that_are_not_opaque_and_unsure_people_are_left_out(tmp_path: Path) -> None:
    rows = [(1, 4, "2", 1.0), (1, 2, "1", 0.0), (1, 2, "1", None), (1, 3, "1", 1.0)]
    comparisons = read_comparisons(written(tmp_path, rows))
    assert len(comparisons.darker) == 1


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "not json", json.dumps({"intrinsic_points": [{"id": 1}], "intrinsic_comparisons": []})],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"a\.json: no comparison"):
        read_comparisons(file)


def test_a_point_outside_of_the_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a point at 1\.5"):
        read_comparisons(
            written(tmp_path, [(1, 2, "1", 1.0)], [{"id": 1, "x": 1.5, "y": 0}, {"id": 2, "x": 0, "y": 0}])
        )
    with pytest.raises(UserError, match="no comparison of two opaque points"):
        read_comparisons(written(tmp_path, [(1, 4, "1", 1.0)]))
