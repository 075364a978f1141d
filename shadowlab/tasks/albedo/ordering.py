"""WHDR: how often people's comparisons of two surfaces are contradicted (Bell, Bala, Snavely, SIGGRAPH 2014).

    comparisons/ID.json   as Intrinsic Images in the Wild has them:
    {"intrinsic_points": [{"id": 1, "x": 0.25, "y": 0.5, "opaque": true}],
     "intrinsic_comparisons": [{"point1": 1, "point2": 2, "darker": "1", "darker_score": 0.9}]}

`darker` is 1 or 2, the point with the darker surface, or E for equal; x and y are shares of width and height.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diagnostics.files import parse_json, reason_of
from shadowlab.data import one_line, read_file
from shadowlab.errors import UserError

FOLDER = "comparisons"
THRESHOLD = 0.10
"""Reflectances whose ratio is at most 1.1 count as equal: the paper's delta."""
_LEAST = 1e-10
_EQUAL, _FIRST, _SECOND = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Those of one picture, C of them."""

    first: np.ndarray
    """(C, 2) float64: x and y of the first point, shares of width and height in [0, 1)."""
    second: np.ndarray
    darker: np.ndarray
    """(C,) int64: 1 or 2, or 0 where both are equal."""
    weights: np.ndarray
    """(C,) float64, positive: how sure people were."""

    def disagreement(self, reflectance: Tensor) -> float:
        """WHDR in [0, 1] of a linear picture (3, H, W): the share, by weight, of comparisons that it contradicts."""
        grey = reflectance.double().mean(dim=0).clamp_min(_LEAST).cpu().numpy()
        height, width = grey.shape
        one, other = (
            grey[(points[:, 1] * height).astype(np.int64), (points[:, 0] * width).astype(np.int64)]
            for points in (self.first, self.second)
        )
        said = np.select([other / one > 1 + THRESHOLD, one / other > 1 + THRESHOLD], [_FIRST, _SECOND], _EQUAL)
        return float(self.weights[said != self.darker].sum() / self.weights.sum())


def read_comparisons(file: Path) -> Comparisons:
    """Raises UserError where the file is no list of comparisons, or none of them has a weight."""
    where = one_line(str(file))
    try:
        content = parse_json(read_file(file))
        points = {one["id"]: _place(one) for one in content["intrinsic_points"] if one.get("opaque", True)}
        rows = [_row(one, points) for one in content["intrinsic_comparisons"]]
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({reason_of(error)})") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"{where}: no comparisons as Intrinsic Images in the Wild has them ({one_line(str(error))[:80]}); export "
            "it again"
        ) from error
    kept = [row for row in rows if row is not None]
    if not kept:
        raise UserError(f"{where}: no comparison of two opaque points with a positive score; remove the file")
    first, second, darker, weights = zip(*kept, strict=True)
    return Comparisons(np.array(first), np.array(second), np.array(darker, np.int64), np.array(weights))


def _place(point: Any) -> tuple[float, float]:
    x, y = float(point["x"]), float(point["y"])
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"a point at {x:g}, {y:g}")
    return min(x, 1 - 1e-9), min(y, 1 - 1e-9)


def _row(
    one: Any, points: dict[Any, tuple[float, float]]
) -> tuple[tuple[float, float], tuple[float, float], int, float] | None:
    """None where it says nothing: a point is not opaque, or nobody was sure."""
    score = one["darker_score"]
    darker = {"1": _FIRST, "2": _SECOND, "E": _EQUAL}[str(one["darker"])]
    if one["point1"] not in points or one["point2"] not in points or score is None:
        return None
    if not math.isfinite(float(score)) or float(score) <= 0:
        return None
    return points[one["point1"]], points[one["point2"]], darker, float(score)
