"""Many short texts without an object for each: a quarter of a million of them are a few megabytes that processes share.

Legend: N texts, M distinct ones, B bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, overload

import numpy as np

_SURROGATES = "surrogatepass"  # file names that are no UTF-8 are read with them


class _TextSequence(Sequence[str]):
    """What `Texts` and `Coded` share: slices are lists, and they equal any sequence of the same texts."""

    __hash__ = None  # type: ignore[assignment]

    def _text(self, i: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self._text(one) for one in range(*i.indices(len(self)))]
        place = i + len(self) if i < 0 else i
        if not 0 <= place < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        return self._text(place)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"{list(self[:3])!r} and {len(self) - 3} more" if len(self) > 3 else repr(list(self))


class Texts(_TextSequence):
    """Texts as one run of bytes.

    Args:
        data: (B,) uint8, UTF-8 of all texts without anything between them.
        ends: (N,) int64, ascending: where each of them ends.

    Raises:
        ValueError: the ends are not those of such a run.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        if data.dtype != np.uint8 or ends.dtype != np.int64 or data.ndim != 1 or ends.ndim != 1:
            raise ValueError("texts are bytes and int64 ends")
        if (np.diff(starts) < 0).any() or starts[-1] != len(data):
            raise ValueError("the ends of texts do not fit their bytes")
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        encoded = [text.encode("utf-8", _SURROGATES) for text in texts]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        whole, start = self.data.tobytes(), 0
        for end in self.ends.tolist():
            yield whole[start:end].decode("utf-8", _SURROGATES)
            start = end

    def _text(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.data[start : int(self.ends[i])].tobytes().decode("utf-8", _SURROGATES)


class Coded(_TextSequence):
    """Texts of which many are equal.

    Args:
        table: the M distinct ones.
        codes: (N,) int32, each in [0, M).

    Raises:
        ValueError: a code is outside of the table.
    """

    def __init__(self, table: Texts, codes: np.ndarray) -> None:
        if codes.ndim != 1 or codes.dtype != np.int32:
            raise ValueError("codes are one int32 a text")
        if codes.size and not 0 <= codes.min() <= codes.max() < len(table):
            raise ValueError("a code is outside of its table")
        self.table, self.codes = table, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str]:
        table = list(self.table)
        return (table[code] for code in self.codes.tolist())

    def _text(self, i: int) -> str:
        return self.table[int(self.codes[i])]


class Coder:
    """Gives every distinct value a number, in the order in which they first come."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    def code(self, value: Any) -> int:
        return self._codes.setdefault(value, len(self._codes))

    @property
    def values(self) -> list[Any]:
        """The distinct ones, by their number."""
        return list(self._codes)
