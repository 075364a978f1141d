"""Where the records and pictures of a run go besides metrics.jsonl."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from diagnostics.files import reason_of
from diagnostics.health import Finding
from diagnostics.records import Health
from shadowlab.errors import SinkError


class Sink(Protocol):
    """Where the records and pictures of a run go besides metrics.jsonl: a view that is written while it trains.

    An OSError of it, where its files vanish or are refused, and a SinkError, where its library raises, do not end the
    run: metrics.jsonl has what it would have shown.
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
    """All of a run's. One that fails is left out from then on, with one warning.

    Args:
        again: how to see later what a lost sink did not show, for the warning.
        record: is given a record of what its own library has lost, for metrics.jsonl.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        warn: Callable[[str], None] | None,
        again: str,
        record: Callable[[Health], None] | None = None,
    ) -> None:
        self._sinks, self._warn, self._again, self._record = list(sinks), warn, again, record
        self._step = 0

    def remember(self, record: Mapping[str, Any]) -> None:
        self._all(lambda sink: sink.remember(record))

    def write(self, record: Mapping[str, Any]) -> None:
        self._step = record.get("step", self._step)
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
            except (OSError, SinkError) as error:
                self._sinks.remove(sink)
                reason = str(error) if isinstance(error, SinkError) else reason_of(error)
                said = f"cannot be written any more ({reason}); the run goes on without it"
                if self._warn is not None:
                    self._warn(f"{sink.name}: {said}; {self._again}")
                if self._record is not None and isinstance(error, SinkError):
                    found = Finding("view lost", "warning", self._step, said, self._again, subject=sink.name)
                    self._record(Health(kind="health", step=self._step, findings=[found.to_json()]))
