"""What training, evaluation and the stages need of a data set, whatever its samples are."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from shadowlab.data.sources import Entry

S_co = TypeVar("S_co", covariant=True)


class SampleSet(Protocol[S_co]):
    """Samples that can be read at any time, from any process.

    One that brings its own validation samples has an attribute `held_out`, the set of their object ids.
    """

    @property
    def name(self) -> str:
        """For people."""

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids, unique, sorted."""

    @property
    def object_ids(self) -> Sequence[str]:
        """Object id of each sample, in the order of `ids`; a split never separates samples of one object."""

    @property
    def notices(self) -> list[str]:
        """Remarks that the caller should print, one line each."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> S_co:
        """Sample i at the data set's image size. Raises UserError naming the sample if it cannot be read."""

    def entry(self, i: int) -> Entry:
        """What is known of sample i without decoding: its numbers and where its pictures lie."""

    def fingerprint(self) -> str:
        """Hex digest of metadata and file sizes, independent of where the data lie."""
