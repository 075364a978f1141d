"""A data set that is examined sample by sample, so that many processes can share it, and all samples together last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shadowlab.data.sources import Problem


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
