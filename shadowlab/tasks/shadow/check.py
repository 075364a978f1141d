"""`shadowlab data check`: examine every sample of a data set and list all that is wrong with it."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from shadowlab.data import Problem, Thumbnails, check_image_size, composite, one_line
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.dataset import index_dataset
from shadowlab.tasks.shadow.pictures import decode_entry, make_sample

_BRIGHT = 0.75  # an inverted shadow map has most of its pixels above; of the embedded set's none has 12 % above 0.5
_NUM_NAMED = 3  # of samples that are alike, those that are named


@dataclass(frozen=True)
class CheckReport:
    """What a full reading found."""

    num_samples: int
    """Samples that the metadata list."""
    num_objects: int
    """Distinct objects among them."""
    problems: list[Problem]
    """What makes training refuse the data set; `str()` of each is one line."""
    notices: list[str]
    """What a person should know, one line each."""


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
    num_read, inverted_masks, bright_shadows = 0, [], []
    for entry in index.entries:
        pictures, faults = decode_entry(entry)
        problems += faults
        if pictures is None:
            continue
        if image_size is not None and entry.values is not None:
            try:
                make_sample(entry, pictures, image_size)
            except UserError as error:
                problems.append(Problem(entry.id, str(error)))
        num_read += 1
        if _is_mostly_marked_to_all_borders(pictures.mask[0]):
            inverted_masks.append(entry.id)
        if (pictures.shadow > _BRIGHT).float().mean() > 0.5:
            bright_shadows.append(entry.id)
        low, high = (value.item() for value in pictures.shadow.aminmax())
        if low == high:
            notices.append(f"{one_line(entry.id)}: the shadow map is {low:g} everywhere; bright = shadow")
        composited = (composite(pictures.object, pictures.mask) + 1) / 2
        thumbnails.add(entry.id, (composited, pictures.mask, pictures.shadow))
    objects = {entry.object_id for entry in index.entries}
    notices += _of_all(num_read, inverted_masks, bright_shadows, objects)
    notices += [
        f"{one_line(first)} and {one_line(second)}: nearly the same pictures under two ids"
        for first, second in thumbnails.near_duplicates()
    ]
    return CheckReport(
        num_samples=len(index.entries),
        num_objects=len(objects),
        problems=problems,
        notices=notices,
    )


def _of_all(
    num_read: int, inverted_masks: Sequence[str], bright_shadows: Sequence[str], objects: Collection[str]
) -> list[str]:
    """What only many samples together show."""
    notices = []
    if inverted_masks:
        notices.append(
            f"{_of(inverted_masks, num_read, 'masks')} mark most of the picture as object and touch all four borders: "
            "inverted? white = object; save 255 - value"
        )
    if len(bright_shadows) > num_read / 2:
        notices.append(
            f"{_of(bright_shadows, num_read, 'shadow maps')} are mostly white: inverted? 255 = full shadow, 0 = none; "
            "save 255 - value"
        )
    if len(objects) == 1:
        notices.append(
            f"all samples show one object, {one_line(min(objects))}: train cannot split them into training and "
            "validation; add samples of a second object, or correct `object` in metadata.json (overfit will do)"
        )
    return notices


def listing(lines: Sequence[str]) -> list[str]:
    """`NAME: what` lines for a person: of those that differ in names and numbers alone three, then their count."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        name, _, what = line.partition(": ")
        kinds[re.sub(r"\d+", "#", what.replace(name, "*"))].append(line)
    listed = {line for alike in kinds.values() for line in alike[:_NUM_NAMED]}
    rest = [(len(alike) - _NUM_NAMED, alike[0]) for alike in kinds.values() if len(alike) > _NUM_NAMED]
    return [line for line in lines if line in listed] + [f"and {count} more like: {line}" for count, line in rest]


def _is_mostly_marked_to_all_borders(mask: Tensor) -> bool:
    """(H, W): an object stands on ground that is seen around it; its inverted mask is all but a hole."""
    borders = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return bool(mask.mean() > 0.5 and all(border.any() for border in borders))


def _of(samples: Sequence[str], total: int, noun: str) -> str:
    first = ", ".join(one_line(sample) for sample in samples[:_NUM_NAMED])
    more = ", ..." if len(samples) > _NUM_NAMED else ""
    return f"{len(samples)} of {total} {noun} ({first}{more})"
