"""A data set that is examined sample by sample, so that many processes can share it, and all samples together last."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from shadowlab.data.sources import Entry, Problem


@dataclass(frozen=True, eq=False)
class Examined:
    """What one sample shows. It depends on the sample's own files alone."""

    problems: tuple[str, ...] = ()
    """What is wrong with it, and the fix; one line each, without its id."""
    notices: tuple[str, ...] = ()
    """What a person should know of it, likewise."""
    was_read: bool = True
    """False where its pictures could not be read: it then counts for nothing that many samples show together."""
    marks: frozenset[str] = frozenset()
    """Which of `Examination.marks` it has."""
    thumbnail: np.ndarray | None = None
    """`thumbnail` of its pictures, (256 channels,) uint8, by which near duplicates are found."""
    numbers: np.ndarray | None = None
    """(K,) float32 that `Judging.judge` is given of all samples; of one length for all that were read."""


@dataclass(frozen=True)
class Fault:
    """What many samples together show."""

    text: str
    """One line: what is wrong, and the fix."""
    is_error: bool = False
    """Training on the data would be wrong; False: it may be meant."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What all samples together show."""

    faults: tuple[Fault, ...] = ()
    said: tuple[str, ...] = ()
    """What was judged, and what could not be; one line each."""
    picture: np.ndarray | None = None
    """(H, W, 3) uint8: samples that a person should look at."""
    marks: tuple[str, ...] = ()
    """Those of `Examination.marks` that a fault speaks of: `together` need not."""


class Examination(Protocol):
    """A data set, opened to be examined; faulty ones too."""

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids, unique, sorted."""

    @property
    def object_ids(self) -> Sequence[str]:
        """Object id of each sample."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What is wrong with names and metadata."""

    @property
    def notices(self) -> Sequence[str]:
        """What a person should know before any picture is read, one line each."""

    @property
    def remarks(self) -> Sequence[str]:
        """What was met when it was opened, and says nothing of the data set."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of what is seen of single samples, but means something only if many show it."""

    def examine(self, i: int) -> Examined:
        """Sample i, whose files are each read once."""

    def basis(self, i: int) -> str:
        """What shows, without reading its files, whether sample i would still be found the same."""

    def together(self, num_read: int, marked: Mapping[str, Sequence[str]]) -> list[str]:
        """What only many samples show, one line each. marked: mark -> ids of the samples that have it, in order."""

    def fingerprint(self) -> str:
        """Hex digest of names, metadata and file sizes."""


@runtime_checkable
class Judging(Protocol):
    """An `Examination` whose samples are judged together by their numbers as well."""

    def judge(self, samples: Sequence[int], numbers: np.ndarray) -> Judgement:
        """Args:
        samples: those that were read, ascending; a few of them may be read again.
        numbers: (len(samples), K) float32, of each what `examine` gave.
        """


def basis_of(entry: Entry, *words: object) -> str:
    """SHA-256 (hex) of what decides how a sample of files is examined: its metadata, and how its files look.

    words: what else decides it, of the task.
    """
    found = [repr((entry.id, entry.object_id, *words))]
    for role, source in entry.sources.items():
        found.append(repr((role, source.name, source.size, getattr(source, "offset", 0))))
        with suppress(OSError):
            status = source.path.stat()
            found.append(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
