"""A data set of its own to validate on: none of what is trained on may be in it."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from shadowlab.data import Entry, IndexedDataset, Role, Source, one_line
from shadowlab.errors import UserError

_OF_VALIDATION = "validation "  # begins the ids of a validation set's samples


S = TypeVar("S")


class WithValidation(Generic[S]):
    """A training set, and after it one to validate on. A `SampleSet`.

    Attributes:
        held_out: objects of the validation set.
        shared: what both sets have in common, in words; empty where that is nothing.
        notices: remarks that the caller should print.
    """

    def __init__(
        self,
        training: IndexedDataset[S],
        validation: IndexedDataset[S],
        *,
        compared: Sequence[Role],
        noun: str,
        permitted: bool,
    ) -> None:
        """Samples are dataclasses with `id` and `object_id`.

        Args:
            compared: roles of pictures of which one in both sets, to the byte, makes a sample shared.
            noun: what is learnt, for people: `albedo`.
            permitted: whether both may show the same objects.

        Raises:
            UserError: they do and may not.
        """
        self._training, self._validation = training, validation
        self.name = training.name
        self.ids: Sequence[str] = [*training.ids, *(f"{_OF_VALIDATION}{name}" for name in validation.ids)]
        objects = [f"{_OF_VALIDATION}{name}" for name in validation.object_ids]
        self.object_ids: Sequence[str] = [*training.object_ids, *objects]
        self.held_out = frozenset(objects)
        self.shared = shared_objects(training, validation, compared)
        self.notices = [*training.notices, *validation.notices]
        if self.shared and not permitted:
            raise UserError(
                f"task_options.validation_path: {self.shared}; validation would measure memory. Give other data, leave "
                "the option out (objects are held out of data.path), or permit it by --set "
                "task_options.validate_on_training_data=true, which every report then says"
            )
        if self.shared:
            self.notices.append(
                f"VALIDATED ON TRAINING DATA: {self.shared}; figures of validation measure memory, not {noun}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> S:
        """Raises as `IndexedDataset`."""
        if i < len(self._training):
            return self._training[i]
        sample: Any = self._validation[i - len(self._training)]
        found: S = replace(sample, id=self.ids[i], object_id=self.object_ids[i])
        return found

    def entry(self, i: int) -> Entry:
        if i < len(self._training):
            return self._training.entry(i)
        return replace(self._validation.entry(i - len(self._training)), id=self.ids[i], object_id=self.object_ids[i])

    def fingerprint(self) -> str:
        both = self._training.fingerprint(), self._validation.fingerprint()
        return hashlib.sha256(" ".join(both).encode()).hexdigest()


def shared_objects(training: IndexedDataset[S], validation: IndexedDataset[S], compared: Sequence[Role]) -> str:
    """What both sets have in common, in words; empty where that is nothing.

    A sample is shared where one of its compared pictures is in both, to the byte, or where its object has the same name
    in the same folder; elsewhere names say little, for every render begins with obj_0000.
    """
    if training.fingerprint() == validation.fingerprint():
        return f"it is the training set ({len(validation)} samples)"
    same_place = _folder_of(training) == _folder_of(validation)
    names = set(training.object_ids) if same_place else set()
    by_size: dict[tuple[Role, int], list[Source]] = defaultdict(list)
    for i in range(len(training)):
        sources = training.entry(i).sources
        for role in compared:
            if role in sources:
                by_size[role, sources[role].size].append(sources[role])
    found = [
        i
        for i in range(len(validation))
        if validation.object_ids[i] in names or _is_among(validation.entry(i), by_size, compared)
    ]
    if not found:
        return ""
    first = one_line(validation.place_of(found[0]))
    return f"{len(found)} of its {len(validation)} samples (first {first}) show what is in the training set"


def _is_among(entry: Entry, by_size: Mapping[tuple[Role, int], Sequence[Source]], compared: Sequence[Role]) -> bool:
    """Whether a picture of the entry is one of those, to the byte."""
    for role in compared:
        source = entry.sources.get(role)
        alike = by_size.get((role, source.size), ()) if source is not None else ()
        if source is not None and alike and source.read() in (other.read() for other in alike):
            return True
    return False


def _folder_of(dataset: IndexedDataset[S]) -> Path:
    return (dataset.path.parent if dataset.path.is_file() else dataset.path).resolve()
