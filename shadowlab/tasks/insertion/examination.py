"""What `shadowlab data check` looks for in a data set of insertions: row by row, and in all of them together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadowlab.data import Examined, Index, Problem, basis_of, check_image_size, one_line, thumbnail
from shadowlab.errors import UserError
from shadowlab.tasks.insertion.dataset import index_dataset
from shadowlab.tasks.insertion.pictures import Pictures, decode_entry, make_sample

LARGE, SMALL = "large mask", "small mask"
_LARGE, _SMALL = 0.8, 0.005  # of the picture's area


class InsertionExamination:
    """An `Examination`; see there for what each part is for.

    Args:
        path: as for `open_dataset`.
        image_size: pixels; where given, each sample is also brought to this size.
        renew: read the file in any case, even where an index of it is kept.

    Raises:
        UserError: there is no data set at `path`, or `image_size` is not a multiple of 8.
    """

    marks = (LARGE, SMALL)

    def __init__(self, path: str | Path, image_size: int | None, *, renew: bool) -> None:
        if image_size is not None:
            check_image_size(image_size)
        self._image_size = image_size
        self._index: Index = index_dataset(path, renew=renew)
        self.ids, self.object_ids = self._index.entries.ids, self._index.entries.object_ids
        self.problems: Sequence[Problem] = self._index.problems
        self.notices: Sequence[str] = self._index.notices
        self.remarks: Sequence[str] = self._index.remarks

    def fingerprint(self) -> str:
        return self._index.fingerprint()

    def basis(self, i: int) -> str:
        entry = self._index.entries[i]
        return basis_of(entry, entry.values)

    def examine(self, i: int) -> Examined:
        entry = self._index.entries[i]
        pictures, faults = decode_entry(entry)
        problems = [fault.message for fault in faults]
        if pictures is None:
            return Examined(tuple(problems), was_read=False)
        if self._image_size is not None:
            try:
                make_sample(entry, pictures, self._image_size)
            except UserError as error:
                problems.append(str(error))
        return Examined(
            problems=tuple(problems),
            notices=_remarks(pictures),
            marks=_marks(pictures),
            thumbnail=thumbnail((pictures.target, pictures.object)),
        )

    def together(self, num_read: int, marked: Mapping[str, Sequence[str]]) -> list[str]:
        notices = []
        for mark, fix in (
            (LARGE, "little is left that the object must fit to; white is where it goes, not what stays"),
            (SMALL, "at a latent's 8 x 8 pixels little of such an object remains; crop to it"),
        ):
            if found := marked[mark]:
                notices.append(f"{len(found)} of {num_read} rows have a {mark} (first {one_line(found[0])}): {fix}")
        objects = set(self.object_ids)
        if len(objects) == 1:
            notices.append(
                f"all rows show one object, {one_line(min(objects))}: train cannot split them into training and "
                "validation; add rows of a second object, or give task_options.validation_path (overfit will do)"
            )
        return notices


def _marks(pictures: Pictures) -> frozenset[str]:
    share = float(pictures.mask.mean())
    return frozenset([LARGE] if share > _LARGE else [SMALL] if share < _SMALL else [])


def _remarks(pictures: Pictures) -> tuple[str, ...]:
    low, high = (float(one) for one in pictures.object.aminmax())
    return (f"the object's picture is one value everywhere ({low:.2f})",) if low == high else ()
