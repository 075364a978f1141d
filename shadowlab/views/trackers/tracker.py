"""A tracker of experiments as a sink of the records. Whatever its library raises, the run goes on without it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from diagnostics.board import text_of
from diagnostics.records import rounded
from diagnostics.statistics import Histogram
from shadowlab.drawing import to_image
from shadowlab.errors import SinkError
from shadowlab.views.trackers.numbers import Numbers


@dataclass(frozen=True)
class Beginning:
    """What a session is called."""

    folder: Path
    """Of the run; what the tracker keeps on this machine goes below it."""
    config: Mapping[str, Any]
    """The run's, as JSON has it."""
    name: str
    """Of the session: the run's, and the step at which it went on."""

    @property
    def group(self) -> str:
        """Under which the sessions of one run stand together."""
        return self.folder.resolve().name


class Session(Protocol):
    """An open session of a tracker's library."""

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Some may be NaN or Inf."""

    def histogram(self, step: int, name: str, content: Histogram) -> None:
        """Of the finite values, of which there are some; how many were not stands among the numbers."""

    def text(self, step: int, tag: str, markdown: str) -> None: ...

    def picture(self, step: int, tag: str, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """A `Sink` of one session. The library is imported, and its session opened, with the first record.

    Each session of a run that is resumed is one of its own, in the group of the run: within each, steps only rise, and
    nothing that a tracker has seen has to be taken back (wandb#4482).
    """

    def __init__(self, name: str, begin: Callable[[Beginning], Session], beginning: Beginning) -> None:
        """`name`: for messages."""
        self.name = name
        self._begin, self._beginning = begin, beginning
        self._session: Session | None = None
        self._numbers = Numbers()

    def remember(self, record: Mapping[str, Any]) -> None:
        """Of an earlier session, which has it."""
        self._numbers.learn(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Raises SinkError where the library raises anything."""
        with self._open() as session:
            step = record.get("step")
            if step is None:  # a header
                return
            numbers, text = self._numbers.of(record), text_of(record)
            if numbers:
                session.numbers(step, numbers)
            for name, content in record.get("histograms", {}).items():
                if content["counts"]:
                    ends = {key: rounded(content[key]) for key in ("low", "high")}  # as metrics.jsonl has them
                    session.histogram(step, name, Histogram(**{**content, **ends}))
            if text is not None:
                session.text(step, *text)

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture: (3, H, W) in [0, 1]. Raises as `write`."""
        self.picture(tag, to_image(picture), step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Raises as `write`."""
        with self._open() as session:
            session.picture(step, tag, picture)

    def close(self) -> None:
        """Raises as `write`."""
        if self._session is not None:
            with self._open() as session:
                session.close()

    @contextmanager
    def _open(self) -> Iterator[Session]:
        try:
            if self._session is None:
                self._session = self._begin(self._beginning)
            yield self._session
        except Exception as error:  # of a library that is not ours, and of no weight for the run: it is said
            said = " ".join(str(error).split())[:200]
            raise SinkError(f"{type(error).__name__}: {said}" if said else type(error).__name__) from error
