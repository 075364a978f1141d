"""What is found of some samples, as a file of its own: a check that was stopped goes on from them.

    FOLDER/part-000012.safetensors    of the twelfth run of samples, written whole or not at all

Legend: n samples of a part, M marks, D = 256 channels, K numbers.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diagnostics.files import read_bytes, reason_of, replace
from shadowlab.data import Examination, joined_columns, split_columns
from shadowlab.errors import UserError

_FORMAT = 2  # one more whenever a file comes to mean something else, or an examination finds something else
_MOST_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Part:
    """What is found of consecutive samples."""

    said: list[tuple[int, list[str], list[str]]]
    """Place in the part, problems, notices: of those samples that have any."""
    was_read: np.ndarray
    """(n,) bool."""
    marks: np.ndarray
    """(n, M) bool."""
    thumbnails: np.ndarray
    """(n, D) uint8, zeros where a sample was not read; D = 0 where none has any."""
    numbers: np.ndarray
    """(n, K) float32 that all samples are judged by together, likewise."""


def examine_part(examination: Examination, samples: Sequence[int]) -> Part:
    """A function of these samples' files alone. samples: n numbers."""
    said: list[tuple[int, list[str], list[str]]] = []
    was_read = np.zeros(len(samples), np.bool_)
    marks = np.zeros((len(samples), len(examination.marks)), np.bool_)
    thumbnails: dict[int, np.ndarray] = {}
    numbers: dict[int, np.ndarray] = {}
    for place, sample in enumerate(samples):
        found = examination.examine(sample)
        if found.problems or found.notices:
            said.append((place, list(found.problems), list(found.notices)))
        was_read[place] = found.was_read
        marks[place] = [mark in found.marks for mark in examination.marks]
        if found.thumbnail is not None:
            thumbnails[place] = found.thumbnail
        if found.numbers is not None:
            numbers[place] = found.numbers
    tables = _table(thumbnails, len(samples), np.uint8), _table(numbers, len(samples), np.float32)
    return Part(said, was_read, marks, *tables)


def _table(rows: dict[int, np.ndarray], count: int, dtype: type) -> np.ndarray:
    """(count, width), zeros where there is no row."""
    table: np.ndarray = np.zeros((count, len(next(iter(rows.values()), ()))), dtype)
    for place, row in rows.items():
        table[place] = row
    return table


class Parts:
    """The parts of one check in its folder.

    Args:
        folder: this check's own; made when it is needed.
        kind: what is looked for; parts of another kind are not used.
    """

    def __init__(self, folder: Path, kind: str, examination: Examination) -> None:
        self.folder = folder
        self._kind, self._examination = kind, examination

    def basis(self, samples: Sequence[int]) -> str:
        """What shows whether these samples would still be found the same."""
        words = [f"{_FORMAT} {self._kind}", *(self._examination.basis(sample) for sample in samples)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def write(self, number: int, part: Part, basis: str) -> None:
        """basis: from before the samples were examined. Raises UserError where the disk refuses."""
        arrays = {"was_read": part.was_read, "marks": part.marks, "thumbnails": part.thumbnails}
        arrays["numbers"] = part.numbers
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace(self._path(number), joined_columns(arrays, {"basis": basis, "said": part.said}))
        except OSError as error:
            raise UserError(
                f"{self.folder}: what is found cannot be kept there ({reason_of(error)}); free some space or choose "
                "another --state"
            ) from error

    def read(self, number: int, basis: str | None = None) -> Part | None:
        """The part, or None where it is absent, damaged, or of samples that are not the same any more.

        basis: what it must be made from; None: whatever it is.
        """
        with suppress(OSError, ValueError, LookupError, TypeError):
            arrays, about = split_columns(read_bytes(self._path(number), limit=_MOST_BYTES))
            if basis in (None, about["basis"]):
                said = [(int(place), list(problems), list(notices)) for place, problems, notices in about["said"]]
                return Part(said, arrays["was_read"], arrays["marks"], arrays["thumbnails"], arrays["numbers"])
        return None

    def numbers(self) -> list[int]:
        """Of the parts that are there, whole or not."""
        found = (path.stem.removeprefix("part-") for path in self.folder.glob("part-*.safetensors"))
        return sorted(int(number) for number in found if number.isdecimal())

    def remove(self, number: int) -> None:
        with suppress(OSError):
            self._path(number).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all parts."""
        for number in self.numbers():
            self.remove(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.safetensors"
