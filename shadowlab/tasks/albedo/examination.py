"""What `shadowlab data check` looks for in a data set of albedos: sample by sample, and in all of them together."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shadowlab.data import Examined, Fault, Index, Judgement, Problem, basis_of, check_image_size, one_line, thumbnail
from shadowlab.errors import UserError
from shadowlab.tasks.albedo.contrast import EXCHANGED, LEAST_EDGES, RIGHT, contrast, exchanged_text, fault_of
from shadowlab.tasks.albedo.dataset import declared_spaces, index_dataset, resolve_path
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.albedo.pictures import Pictures, Spaces, decode_entry, make_sample

DARK = "dark albedo"
SWAPPED = "beauty and albedo exchanged"
_DARK = 0.02  # mean of valid pixels; coal has 0.04
_LEAST_SAMPLES = 3  # that must show enough steps


class AlbedoExamination:
    """An `Examination` whose samples are judged together; see there for what each part is for.

    Args:
        path: as for `open_dataset`.
        image_size: pixels; where given, each sample is also brought to this size.
        renew: read all names and metadata, even where an index of them is kept.

    Raises:
        UserError: there is no data set at `path`, or `image_size` is not a multiple of 8.
    """

    marks = (DARK, SWAPPED)

    def __init__(self, path: str | Path, image_size: int | None, options: AlbedoOptions, *, renew: bool) -> None:
        if image_size is not None:
            check_image_size(image_size)
        self._image_size = image_size
        self._index: Index = index_dataset(path, renew=renew)
        self.ids, self.object_ids = self._index.entries.ids, self._index.entries.object_ids
        self.problems: Sequence[Problem] = self._index.problems
        self._spaces: Spaces | None = None
        try:
            self._spaces = declared_spaces(resolve_path(path), options)
        except UserError as error:
            self.problems = [*self.problems, Problem("colour space", str(error))]
        self.notices: Sequence[str] = self._index.notices
        self.remarks: Sequence[str] = self._index.remarks

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._index.fingerprint()} {self._spaces}".encode()).hexdigest()

    def basis(self, i: int) -> str:
        entry = self._index.entries[i]
        return basis_of(entry, self._spaces)

    def examine(self, i: int) -> Examined:
        entry = self._index.entries[i]
        pictures, faults = decode_entry(entry)
        problems = [fault.message for fault in faults]
        if pictures is None:
            return Examined(tuple(problems), was_read=False)
        if self._image_size is not None and self._spaces is not None:
            try:
                make_sample(entry, pictures, self._image_size, self._spaces)
            except UserError as error:
                problems.append(str(error))
        low, high = (float(one) for one in pictures.albedo.aminmax())
        numbers = self._numbers(pictures)
        marks = [DARK] * (_mean(pictures) < _DARK) + [SWAPPED] * bool(numbers[2] < EXCHANGED)
        return Examined(
            problems=tuple(problems),
            notices=("the albedo is one grey value everywhere",) if low == high else (),
            marks=frozenset(marks),
            thumbnail=thumbnail((pictures.beauty, pictures.albedo)),
            numbers=numbers,
        )

    def judge(self, samples: Sequence[int], numbers: np.ndarray) -> Judgement:
        if self._spaces is None or not len(samples):
            return Judgement()
        told = numbers[numbers[:, 2] != 0, 2]
        if len(told) and (found := float(np.median(told))) < EXCHANGED:
            return Judgement((Fault(exchanged_text(found), is_error=True),))
        ratios = numbers[numbers[:, 1] >= LEAST_EDGES, 0]
        if len(ratios) < min(_LEAST_SAMPLES, len(samples)):
            said = f"colour spaces: not judged, {len(ratios)} of {len(samples)} albedos have edges enough"
            return Judgement(said=(said,))
        ratio = float(np.median(ratios))
        if RIGHT[0] <= ratio <= RIGHT[1]:
            said = f"colour spaces: steps of beauty and albedo agree (ratio {ratio:.2f} over {len(ratios)} samples)"
            return Judgement(said=(said,))
        return Judgement((Fault(fault_of(ratio, self._spaces.beauty, self._spaces.albedo), is_error=True),))

    def together(self, num_read: int, marked: Mapping[str, Sequence[str]]) -> list[str]:
        notices = []
        if len(dark := marked[DARK]) > num_read / 2:
            first = one_line(dark[0])
            notices.append(
                f"{len(dark)} of {num_read} albedos are darker than coal (first {first}): black, inverted or of "
                "another scale? Save reflectance in [0, 1]"
            )
        if 0 < len(swapped := marked[SWAPPED]) <= num_read / 2:
            notices.append(
                f"{len(swapped)} of {num_read} pairs look exchanged (first {one_line(swapped[0])}): the albedo has "
                "edges that the beauty has not; look at them, and exchange their files"
            )
        objects = set(self.object_ids)
        if len(objects) == 1:
            notices.append(
                f"all samples show one object, {one_line(min(objects))}: train cannot split them into training and "
                "validation; add samples of a second object, name `object` in metadata.json, or give "
                "task_options.validation_path (overfit will do)"
            )
        return notices

    def _numbers(self, pictures: Pictures) -> np.ndarray:
        """(3,): the ratio of `contrast`, 0 where there is none, the number of steps, and `own_edges`."""
        if self._spaces is None:
            return np.zeros(3, np.float32)
        found = contrast(pictures.beauty, pictures.albedo, pictures.valid, self._spaces.beauty, self._spaces.albedo)
        return np.array([found.ratio if found.num_edges else 0.0, found.num_edges, found.own_edges], np.float32)


def _mean(pictures: Pictures) -> float:
    return float((pictures.albedo * pictures.valid).sum() / (3 * pictures.valid.sum()))
