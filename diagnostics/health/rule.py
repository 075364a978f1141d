"""A named rule over a run's records, and what it finds."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from diagnostics.records import FindingRecord, History

Severity = Literal["warning", "alarm"]
_RISING = 6  # records of the rate
PIECE = 256  # measured steps: 3.5 MB of a table of 1,700 parameters


@dataclass(frozen=True)
class Finding:
    """One thing that a rule objects to; its fields are those of `records.FindingRecord`, which says what they mean."""

    rule: str
    severity: Severity
    step: int | None
    evidence: str
    advice: str
    layer: str | None = None
    parameter: str | None = None
    predicted_step: int | None = None
    part: str | None = None
    subject: str | None = None

    @property
    def place(self) -> str:
        """Layer or parameter, else an input's, a call's or an optimizer's name; "" where the finding is about none."""
        return self.layer or self.parameter or self.subject or ""

    @property
    def where(self) -> str:
        """Another name of `place`, as contracts have it."""
        return self.place

    def to_json(self) -> FindingRecord:
        """As a record of kind `health` has it."""
        return cast(FindingRecord, asdict(self))

    def __str__(self) -> str:
        where = f" in {self.place}" if self.place else ""
        return f"{self.rule}{where}: {self.evidence}; {self.advice}"


@dataclass(frozen=True)
class Rule:
    """A function that looks at a history, with what people want to know about it."""

    name: str
    """As findings carry it."""
    threshold: str
    """When it speaks, with its numbers."""
    source: str
    """Where the threshold is from."""
    check: Callable[[History], list[Finding]]
    """What it finds in a history."""
    live: bool = False
    """Cheap enough, and soon enough, to be asked while the run is under way."""

    @property
    def why(self) -> str:
        """What it is for: the docstring of `check`."""
        return inspect.getdoc(self.check) or ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "threshold": self.threshold, "source": self.source, "why": self.why}


def rule(
    name: str, *, threshold: str, source: str, live: bool = False
) -> Callable[[Callable[[History], list[Finding]]], Rule]:
    """Make a rule of a function that looks at a history; its docstring says why."""

    def make(check: Callable[[History], list[Finding]]) -> Rule:
        return Rule(name, threshold, source, check, live)

    return make


def warming_up(history: History) -> bool:
    """Whether the learning rate is still rising at the end of the records."""
    rates = history.curve("learning_rate").values
    return len(rates) > 1 and rates[-1] == max(rates) and rates[-1] > min(rates[-_RISING:])


def number(value: float) -> str:
    """Three digits: evidence is read, not computed with."""
    return f"{value:.3g}"


def column_pieces(history: History) -> list[slice]:
    """The measured steps, a few hundred at a time: a whole table of a long run has tens of MB."""
    return [slice(i, i + PIECE) for i in range(0, len(history.measured_steps), PIECE)]
