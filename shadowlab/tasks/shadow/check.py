"""What `shadowlab data check` looks for in a data set of shadows: sample by sample, and in all of them together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from shadowlab.data import (
    Entry,
    Examined,
    Index,
    Judgement,
    Problem,
    Role,
    basis_of,
    check_image_size,
    composite,
    one_line,
    thumbnail,
)
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.dataset import index_dataset
from shadowlab.tasks.shadow.folder import raw_lights
from shadowlab.tasks.shadow.judgement import Samples, judge
from shadowlab.tasks.shadow.light import RANGES
from shadowlab.tasks.shadow.numbers import Numbers, numbers_of
from shadowlab.tasks.shadow.pictures import Pictures, decode_entry, decode_picture, make_sample

INVERTED_MASK, BRIGHT_SHADOW = "inverted mask", "bright shadow"
_BRIGHT = 0.75  # an inverted shadow map has most of its pixels above; of the embedded set's none has 12 % above 0.5
_NUM_NAMED = 3  # of samples that are alike, those that are named


class ShadowExamination:
    """An `Examination`; see there for what each part is for.

    Args:
        path: as for `open_dataset`.
        image_size: pixels; where given, each sample is also brought to this size.
        renew: read all names and metadata, even where an index of them is kept.

    Raises:
        UserError: there is no data set at `path`, or `image_size` is not a multiple of 8.
    """

    marks = (INVERTED_MASK, BRIGHT_SHADOW)

    def __init__(self, path: str | Path, image_size: int | None, *, renew: bool) -> None:
        if image_size is not None:
            check_image_size(image_size)
        self._image_size = image_size
        self._index: Index = index_dataset(path, renew=renew)
        self._last: dict[Role, tuple[bytes, Tensor]] = {}
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
        pictures, faults = decode_entry(entry, self._decode)
        problems = [fault.message for fault in faults]
        if pictures is None:
            return Examined(tuple(problems), was_read=False)
        if self._image_size is not None and entry.values is not None:
            problems += _lost_at(self._image_size, entry, pictures)
        low, high = (value.item() for value in pictures.shadow.aminmax())
        notices = [f"the shadow map is {low:g} everywhere; bright = shadow"] if low == high else []
        is_marked = {
            INVERTED_MASK: _is_mostly_marked_to_all_borders(pictures.mask[0]),
            BRIGHT_SHADOW: bool((pictures.shadow > _BRIGHT).float().mean() > 0.5),
        }
        composited = (composite(pictures.object, pictures.mask) + 1) / 2
        return Examined(
            problems=tuple(problems),
            notices=tuple(notices),
            marks=frozenset(mark for mark, is_here in is_marked.items() if is_here),
            thumbnail=thumbnail((composited, pictures.mask, pictures.shadow)),
            numbers=numbers_of(pictures, composited),
        )

    def judge(self, samples: Sequence[int], numbers: np.ndarray) -> Judgement:
        lights, rows, kept = self._lights(), np.array(samples, np.int64), Numbers(numbers)
        entries = self._index.entries
        count = len(lights)
        return judge(
            Samples(
                ids=[self.ids[i] for i in samples],
                object_ids=[self.object_ids[i] for i in samples],
                lights=lights[rows],
                before=lights[(rows - 1) % count],
                after=lights[(rows + 1) % count],
                numbers=kept,
                looks=kept.looks,
                are_tracks=any(entries[i].track is not None for i in samples[:_NUM_NAMED]),
                read=lambda row: decode_entry(entries[samples[row]], self._decode)[0],
            )
        )

    def _lights(self) -> np.ndarray:
        """(N, 3) float64 of all samples; where they are refused, what metadata.json has; NaN where that is nothing."""
        entries = self._index.entries
        arrays = entries.arrays()
        known = arrays["has_values"]
        lights = np.full((len(entries), len(RANGES)), np.nan)
        if known.any():
            lights[known] = arrays["values"][known]
        if not known.all():
            given = raw_lights(entries.root)
            for row in np.flatnonzero(~known).tolist():
                lights[row] = given.get(entries.ids[row], np.nan)
        return lights

    def together(self, num_read: int, marked: Mapping[str, Sequence[str]]) -> list[str]:
        notices = []
        inverted, bright = marked[INVERTED_MASK], marked[BRIGHT_SHADOW]
        if inverted:
            notices.append(
                f"{_of(inverted, num_read, 'masks')} mark most of the picture as object and touch all four borders: "
                "inverted? white = object; save 255 - value"
            )
        if len(bright) > num_read / 2:
            notices.append(
                f"{_of(bright, num_read, 'shadow maps')} are mostly white: inverted? 255 = full shadow, 0 = none; "
                "save 255 - value"
            )
        objects = set(self.object_ids)
        if len(objects) == 1:
            notices.append(
                f"all samples show one object, {one_line(min(objects))}: train cannot split them into training and "
                "validation; add samples of a second object, or correct `object` in metadata.json (overfit will do)"
            )
        return notices

    def _decode(self, role: Role, data: bytes, where: str) -> Tensor:
        """Samples of one object mostly follow one another: bytes that come again are not decoded again."""
        last = self._last.get(role)
        if last is not None and last[0] == data:
            return last[1]
        self._last.pop(role, None)  # before another one is made: they may be large
        picture = decode_picture(role, data, where)
        self._last[role] = data, picture
        return picture


def _lost_at(image_size: int, entry: Entry, pictures: Pictures) -> list[str]:
    try:
        make_sample(entry, pictures, image_size)
    except UserError as error:
        return [str(error)]
    return []


def _is_mostly_marked_to_all_borders(mask: Tensor) -> bool:
    """(H, W): an object stands on ground that is seen around it; its inverted mask is all but a hole."""
    borders = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return bool(mask.mean() > 0.5 and all(border.any() for border in borders))


def _of(samples: Sequence[str], total: int, noun: str) -> str:
    first = ", ".join(one_line(sample) for sample in samples[:_NUM_NAMED])
    more = ", ..." if len(samples) > _NUM_NAMED else ""
    return f"{len(samples)} of {total} {noun} ({first}{more})"
