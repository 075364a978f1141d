"""What `shadowlab data check` looks for in a data set of edits: sample by sample, and in all of them together."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from shadowlab.data import Examined, Index, Problem, basis_of, check_image_size, one_line, thumbnail
from shadowlab.tasks.editing.dataset import index_dataset
from shadowlab.tasks.editing.options import EditingOptions
from shadowlab.tasks.editing.pictures import Pictures, decode_entry, make_sample
from shadowlab.tasks.editing.white_balance import clipped_share

UNCHANGED, SHADOW_LEFT, CLIPPED = "unchanged", "shadow left", "clipped"
_SEEN = 4 / 255
"""Least difference outside a mask that a person could see."""
_MOST_OUTSIDE = 0.01  # share of pixels
_MOST_CLIPPED = 0.5


class EditingExamination:
    """An `Examination`; see there for what each part is for.

    Args:
        path: as for `open_dataset`.
        image_size: pixels; where given, each sample is also brought to this size.
        renew: read all names and metadata, even where an index of them is kept.

    Raises:
        UserError: there is no data set at `path`, or `image_size` is not a multiple of 8.
    """

    marks = (UNCHANGED, SHADOW_LEFT, CLIPPED)

    def __init__(self, path: str | Path, image_size: int | None, options: EditingOptions, *, renew: bool) -> None:
        if image_size is not None:
            check_image_size(image_size)
        self._image_size, self._options, self._edit = image_size, options, options.edit
        self._index: Index = index_dataset(path, options.edit, renew=renew)
        self.ids, self.object_ids = self._index.entries.ids, self._index.entries.object_ids
        self.problems: Sequence[Problem] = self._index.problems
        self.notices: Sequence[str] = self._index.notices
        self.remarks: Sequence[str] = self._index.remarks

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._index.fingerprint()} {self._options.model}".encode()).hexdigest()

    def basis(self, i: int) -> str:
        entry = self._index.entries[i]
        return basis_of(entry, entry.values, self._edit.name)

    def examine(self, i: int) -> Examined:
        entry = self._index.entries[i]
        pictures, faults = decode_entry(entry, self._edit)
        if pictures is None:
            return Examined(tuple(fault.message for fault in faults), was_read=False)
        if self._image_size is not None:
            make_sample(entry, pictures, self._image_size, self._options.model.painting)
        shown: list[Tensor] = [pictures.target]
        shown += [] if pictures.input is None else [pictures.input]
        return Examined(marks=frozenset(self._marks(pictures)), thumbnail=thumbnail(shown))

    def _marks(self, pictures: Pictures) -> list[str]:
        if pictures.input is None:
            return []
        change = (pictures.input - pictures.target).abs().amax(dim=0, keepdim=True)
        found = [UNCHANGED] if float(change.max()) == 0 else []
        if self._edit.has_mask:
            outside = pictures.mask == 0
            left = ((change > _SEEN) & outside).sum() / outside.sum().clamp_min(1)
            found += [SHADOW_LEFT] if float(left) > _MOST_OUTSIDE else []
        if self._edit.gains:
            cut = clipped_share(pictures.input[None], pictures.mask[None])
            found += [CLIPPED] if float(cut) > _MOST_CLIPPED else []
        return found

    def together(self, num_read: int, marked: Mapping[str, Sequence[str]]) -> list[str]:
        notices = []
        if same := marked[UNCHANGED]:
            notices.append(
                f"in {len(same)} of {num_read} samples (first {one_line(same[0])}) input and target are one picture: "
                "there is nothing to learn from them"
            )
        if left := marked[SHADOW_LEFT]:
            notices.append(
                f"in {len(left)} of {num_read} samples (first {one_line(left[0])}) input and target differ outside the "
                "mask, in more than 1 % of its pixels: the mask must cover the shadow, too, for what lies outside is "
                "the input's in every result (task_options.keep_input)"
            )
        if cut := marked[CLIPPED]:
            notices.append(
                f"in {len(cut)} of {num_read} inputs (first {one_line(cut[0])}) more than half of the pixels have a "
                "channel that is cut off at 255: no gain brings it back"
            )
        if len(set(self.object_ids)) == 1:
            notices.append(
                f"all samples show one object, {one_line(min(self.object_ids))}: train cannot split them into training "
                "and validation; name others in the column `object`, or give task_options.validation_path"
            )
        return notices
