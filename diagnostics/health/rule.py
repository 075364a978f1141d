"""A named rule over a run's records, and what it finds."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from diagnostics.records import History

Severity = Literal["warning", "alarm"]


@dataclass(frozen=True)
class Finding:
    """One thing that a rule objects to.

    severity: `alarm` for what has spoiled the run, or will, if nothing changes; `warning` for what is worth a look.
    layer, parameter: where, one of them or none. step: the step that showed it, None where the run as a whole does.
    evidence: the numbers. advice: what to change or look at. predicted_step: when it will overflow, where the rule
    foretells that. part: `activation` or `gradient`, where it is about one of a layer.
    """

    rule: str
    severity: Severity
    step: int | None
    evidence: str
    advice: str
    layer: str | None = None
    parameter: str | None = None
    predicted_step: int | None = None
    part: str | None = None

    @property
    def place(self) -> str:
        """Layer or parameter, "" where the finding is about neither."""
        return self.layer or self.parameter or ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = f" in {self.place}" if self.place else ""
        return f"{self.rule}{where}: {self.evidence}; {self.advice}"


@dataclass(frozen=True)
class Rule:
    """threshold: when it speaks, with its numbers. source: where the threshold is from. live: cheap enough, and soon
    enough, to be asked while the run is under way. why: what it is for, the docstring of `check`."""

    name: str
    threshold: str
    source: str
    check: Callable[[History], list[Finding]]
    live: bool = False

    @property
    def why(self) -> str:
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


def number(value: float) -> str:
    """Three digits: evidence is read, not computed with."""
    return f"{value:.3g}"
