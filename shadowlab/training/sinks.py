"""Where the records and pictures of a run go besides metrics.jsonl."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from diagnostics.files import reason_of


class Sink(Protocol):
    """Where the records and pictures of a run go besides metrics.jsonl: a view that is written while it trains.

    An OSError of it, where its files vanish or are refused, does not end the run: metrics.jsonl has what it would have
    shown.
    """

    @property
    def name(self) -> str:
        """For a warning."""
        ...

    def remember(self, record: Mapping[str, Any]) -> None:
        """A record that an earlier process wrote; all of them come before the first `write`."""
        ...

    def write(self, record: Mapping[str, Any]) -> None:
        """A record, as metrics.jsonl has it."""
        ...

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture: (3, H, W) in [0, 1]."""
        ...

    def close(self) -> None: ...


class Sinks:
    """All of a run's. One that fails with an OSError is left out from then on, with one warning."""

    def __init__(self, sinks: Iterable[Sink], warn: Callable[[str], None] | None, again: str) -> None:
        """`again`: how to see later what a lost sink did not show, for the warning."""
        self._sinks, self._warn, self._again = list(sinks), warn, again

    def remember(self, record: Mapping[str, Any]) -> None:
        self._all(lambda sink: sink.remember(record))

    def write(self, record: Mapping[str, Any]) -> None:
        self._all(lambda sink: sink.write(record))

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """`picture`: (3, H, W) in [0, 1]."""
        self._all(lambda sink: sink.image(tag, picture, step))

    def close(self) -> None:
        self._all(lambda sink: sink.close())

    def _all(self, show: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                show(sink)
            except OSError as error:
                self._sinks.remove(sink)
                if self._warn is not None:
                    lost = f"{sink.name}: cannot be written any more ({reason_of(error)})"
                    self._warn(f"{lost}; the run goes on without it; {self._again}")
