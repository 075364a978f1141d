"""The camera that a picture is assumed to be taken by, where nobody says it: what the baselines and the control
measures need to know of the ground.

The ground is the plane z = 0, x to the right of the picture, y away from the camera; the camera stands over the
negative y axis and looks at the origin. Lengths in scene units, angles in degrees. A picture that is not square has the
geometry of its letterbox: the field of view is that of its longer side.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import shadowlab
from diagnostics.files import read_json, reason_of, replace_text
from shadowlab.data import Entry, SampleSet, one_line
from shadowlab.errors import UserError

Array = NDArray[np.float64]

DEFAULT_FILE = Path(shadowlab.__file__).parent / "assets" / "view.json"

_MADE_BY = "make the file with: shadowlab fit-baselines"
_NOTED: dict[str, object] = {"data": "", "fingerprint": "", "num_samples": 0}

RANGES: dict[str, tuple[float, float]] = {
    "elevation": (5.0, 75.0),
    "distance": (2.0, 100.0),
    "field_of_view": (2.0, 100.0),
    "thickness": (0.05, 10.0),
}


@dataclass(frozen=True)
class View:
    """Camera and thickness of objects, one for all pictures of a data set."""

    elevation: float
    """Of the camera over the ground, degrees in [5, 75]."""
    distance: float
    """From the camera to the origin, scene units in [2, 100]; the light is 8 away."""
    field_of_view: float
    """Degrees in [2, 100]."""
    thickness: float
    """Depth of an object as a multiple of what a body of circular cross sections would have, in [0.05, 10]."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low, high = RANGES[name]
            if not low <= value <= high:  # NaN fails this too
                raise UserError(f"view: {name} = {value:g} is outside [{low:g}, {high:g}]; correct the value")

    def focal(self, height: int, width: int) -> float:
        """Focal length in pixels of a picture of that size."""
        return max(height, width) / 2 / math.tan(math.radians(self.field_of_view / 2))

    def unit(self, height: int, width: int) -> float:
        """Scene units that a pixel at the origin is wide."""
        return self.distance / self.focal(height, width)

    def project(self, x: Array, y: Array, z: Array, height: int, width: int) -> tuple[Array, Array, Array]:
        """Column, row and depth of points, whose coordinates broadcast; (0, 0) is the corner at the top left.

        Column and row mean nothing where the depth is not positive.
        """
        sin, cos = math.sin(math.radians(self.elevation)), math.cos(math.radians(self.elevation))
        depth = self.distance + y * cos - z * sin
        focal = self.focal(height, width)
        with np.errstate(divide="ignore", invalid="ignore"):
            return width / 2 + focal * x / depth, height / 2 - focal * (y * sin + z * cos) / depth, depth

    def ground(self, column: ArrayLike, row: ArrayLike, height: int, width: int) -> tuple[Array, Array]:
        """x and y of the ground that is seen at a place of the picture, in broadcast shape; NaN above the horizon."""
        sin, cos = math.sin(math.radians(self.elevation)), math.cos(math.radians(self.elevation))
        focal = self.focal(height, width)
        right = (np.asarray(column, dtype=np.float64) - width / 2) / focal
        up = (height / 2 - np.asarray(row, dtype=np.float64)) / focal
        fall = sin - up * cos  # of a ray whose depth grows by 1
        depth = np.where(fall > 1e-6, self.distance * sin / np.where(fall > 1e-6, fall, 1.0), np.nan)
        x, y = np.broadcast_arrays(right * depth, depth * (cos + up * sin) - self.distance * cos)
        return x, y


@dataclass(frozen=True)
class ViewFit:
    """A view, and what it was fitted on: it must not be judged on the same objects."""

    view: View
    data: str
    """Name of the data set, for people; empty where the view was written by hand."""
    fingerprint: str
    objects: Mapping[str, str]
    """Object id -> `mask_digest` of one of its masks."""
    figures: Mapping[str, float]
    """Means over the samples of the fit: soft_iou, rmse, zncc."""
    num_samples: int

    def write(self, path: Path) -> None:
        """Raises UserError where `path` cannot be written."""
        try:
            replace_text(path, json.dumps(asdict(self), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{one_line(str(path))}: cannot be written ({reason_of(error)})") from error

    def seen_objects(self, data: SampleSet[Any]) -> set[str]:
        """Ids of those objects of a data set that the view was fitted on: those of an equal mask file.

        Reads one mask of each object. Raises UserError that names a mask that cannot be read.
        """
        digests, seen = set(self.objects.values()), set()
        first = {object_id: i for i, object_id in reversed(list(enumerate(data.object_ids)))} if digests else {}
        for object_id, i in first.items():
            if mask_digest(data.entry(i)) in digests:
                seen.add(object_id)
        return seen


def mask_digest(entry: Entry) -> str:
    """Of the mask as its file has it: an object's, wherever it lies and whatever its id."""
    return hashlib.sha256(entry.sources["mask"].read()).hexdigest()[:16]


def default_fit() -> ViewFit:
    """That which ships, of renders of `shadowlab data render`."""
    return read_fit(DEFAULT_FILE)


def default_view() -> View:
    """That of `default_fit`."""
    return default_fit().view


def read_view(path: Path) -> View:
    """As `read_fit`, the view alone."""
    return read_fit(path).view


def read_fit(path: Path) -> ViewFit:
    """From a file of `shadowlab fit-baselines`, or one with a view alone.

    Raises:
        UserError: names the file and what is wrong.
    """
    where = one_line(str(path))
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; {_MADE_BY}") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({reason_of(error)}); check the path") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}; {_MADE_BY}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: no view; {_MADE_BY}")
    data, fingerprint, num_samples = (values.get(name, empty) for name, empty in _NOTED.items())
    objects, figures = values.get("objects", {}), values.get("figures", {})
    if (
        not (isinstance(data, str) and isinstance(fingerprint, str) and isinstance(num_samples, int))
        or not (isinstance(objects, dict) and all(isinstance(digest, str) for digest in objects.values()))
        or not (isinstance(figures, dict) and all(_is_number(figure) for figure in figures.values()))
    ):
        raise UserError(f"{where}: damaged; {_MADE_BY}")
    return ViewFit(view_of(values.get("view"), where), data, fingerprint, objects, figures, num_samples)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def view_of(values: object, where: str) -> View:
    """A `View` from its fields as JSON has them. Raises UserError that names `where` and the field."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: no view; {_MADE_BY}")
    numbers: dict[str, float] = {}
    for field in fields(View):
        value = values.get(field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where}: {field.name} is not a number; {_MADE_BY}")
        numbers[field.name] = float(value)
    try:
        return View(**numbers)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
