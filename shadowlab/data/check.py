"""`shadowlab data check`: examine every sample of a data set and list all that is wrong with it."""

from dataclasses import dataclass
from pathlib import Path

from shadowlab.data.dataset import index_dataset
from shadowlab.data.duplicates import Thumbnails
from shadowlab.data.images import check_image_size
from shadowlab.data.index import Problem, one_line
from shadowlab.data.pictures import decode_entry, make_sample
from shadowlab.errors import UserError


@dataclass(frozen=True)
class CheckReport:
    """What a full reading found.

    Attributes:
        num_samples: samples that the metadata list.
        num_objects: distinct objects among them.
        problems: what makes training refuse the data set; `str()` of each is one line.
        notices: what a person should know, one line each.
    """

    num_samples: int
    num_objects: int
    problems: list[Problem]
    notices: list[str]


def check_dataset(path: str | Path, image_size: int | None = None) -> CheckReport:
    """Decode every sample by the same code as training and list all problems.

    Args:
        path: as for `open_dataset`.
        image_size: pixels; where given, each sample is also brought to this size.

    Raises:
        UserError: there is no data set at `path`, or `image_size` is not a multiple of 8.
    """
    if image_size is not None:
        check_image_size(image_size)
    index = index_dataset(path)
    problems, notices = list(index.problems), list(index.notices)
    thumbnails = Thumbnails()
    for entry in index.entries:
        pictures, faults = decode_entry(entry)
        problems += faults
        if pictures is None:
            continue
        if image_size is not None and entry.light is not None:
            try:
                make_sample(entry, pictures, image_size)
            except UserError as error:
                problems.append(Problem(entry.id, str(error)))
        low, high = (value.item() for value in pictures.shadow.aminmax())
        if low == high:
            notices.append(f"{one_line(entry.id)}: the shadow map is {low:g} everywhere; bright = shadow")
        thumbnails.add(entry.id, pictures)
    notices += [
        f"{one_line(first)} and {one_line(second)}: nearly the same pictures under two ids"
        for first, second in thumbnails.near_duplicates()
    ]
    return CheckReport(
        num_samples=len(index.entries),
        num_objects=len({entry.object_id for entry in index.entries}),
        problems=problems,
        notices=notices,
    )
