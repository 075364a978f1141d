"""Parts of a measurement in a bounded time: the most telling first, each figure on disk as soon as it is there.

A rented machine may be gone at any moment: `measured.jsonl` has a line a figure, synced when it is written, and
`measured.json` what each part came to, the parts that were not measured too, with the reason.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

Note = Callable[[str, Any], None]
"""Takes a figure by its name."""


@dataclass(frozen=True)
class Part:
    """Something to measure."""

    name: str
    seconds: float
    """That it takes on a chip of today; it is not begun where less is left."""
    measure: Callable[[Note, float], None]
    """Notes its figures; given the seconds that are left."""


@dataclass
class Outcome:
    """What a part came to."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why it, or the rest of it, was not measured; empty where all was."""
    seconds: float = 0.0

    def __str__(self) -> str:
        words = ", ".join(f"{name} {_shown(value)}" for name, value in self.figures.items())
        rest = f"not measured: {self.missing}" if self.missing else ""
        return f"{self.name}: {'; '.join(filter(None, (words, rest)))}"


class TimeUpError(Exception):
    """The time of a part is over."""


def measure_parts(
    parts: Sequence[Part],
    seconds: float,
    folder: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> list[Outcome]:
    """One part after another, as many as fit; writes measured.jsonl and measured.json to `folder`.

    Args:
        seconds: for all of them.
    """
    began, slowness = clock(), 1.0
    outcomes: list[Outcome] = []
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "measured.jsonl"
    lines.unlink(missing_ok=True)
    for part in parts:
        left = seconds - (clock() - began)
        outcome, needed = Outcome(part.name), part.seconds * slowness
        outcomes.append(outcome)
        if left < needed:
            outcome.missing = f"{max(0.0, left):.0f} s are left, it takes about {needed:.0f} s"
        else:
            started = clock()
            _measure(part, outcome, left, lines)
            outcome.seconds = clock() - started
            if not outcome.missing:
                slowness = max(slowness, outcome.seconds / part.seconds)
        say(str(outcome))
        _append(lines, {"part": part.name, "seconds": outcome.seconds, "missing": outcome.missing})
        _write(folder / "measured.json", outcomes)
    return outcomes


def not_measured(parts: Sequence[Part], reason: str, say: Callable[[str], None] = print) -> list[Outcome]:
    """Says of each part that it was not measured, and why."""
    outcomes = [Outcome(part.name, missing=reason) for part in parts]
    for outcome in outcomes:
        say(str(outcome))
    return outcomes


def _measure(part: Part, outcome: Outcome, left: float, lines: Path) -> None:
    def note(name: str, value: Any) -> None:
        outcome.figures[name] = value
        _append(lines, {"part": part.name, "figure": name, "value": value})

    try:
        with _at_most(left):
            part.measure(note, left)
    except TimeUpError:
        outcome.missing = "the time is up"
    except Exception as error:  # out of memory, a missing file: other parts may still be measured
        outcome.missing = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeUpError in the block when it has taken so long. In the main thread alone."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _append(file: Path, content: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(content) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _write(file: Path, outcomes: Sequence[Outcome]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
