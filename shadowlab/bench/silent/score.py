"""Whether what a tool said of a loop is right.

A finding names the place where one of the case's places is the whole of it or a dotted part: `head` is named by
`head.weight` and by `model.head`, and `zero_grad` by `optimizer.zero_grad()`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.tools import Said
from shadowlab.bench.silent.trial import Trial

WITHIN = 2
"""Steps after the fault is visible in which it must be found."""


@dataclass(frozen=True)
class Verdict:
    """Of one case under one tool."""

    found: bool
    """A rule that may name it spoke; of another's tool, any rule."""
    in_time: bool
    """It spoke no earlier than the fault was visible, and at most two steps after."""
    placed: bool
    """And named the place; true where the case states none."""
    step: int | None
    """Of the first that is right."""
    others: tuple[Said, ...]
    """Whatever else was said: of a healthy loop, all of it."""
    error: str | None

    @property
    def alarms(self) -> tuple[Said, ...]:
        return tuple(one for one in self.others if one.severity == "alarm")


def judged(case: Case, trial: Trial, *, any_rule: bool = False) -> Verdict:
    """any_rule: a tool of others has rules of other names; whatever it says of a fault counts."""
    expected = case.expected
    if expected is None:
        return Verdict(False, False, False, None, trial.said, trial.error)
    right = [one for one in trial.said if any_rule or one.rule in expected.rules]
    timely = [one for one in right if expected.visible <= (one.step or 0) <= expected.visible + WITHIN]
    placed = [one for one in timely or right if not expected.where or names_one(one, expected.where)]
    first = min((one.step or 0 for one in timely or right), default=None)
    others = tuple(one for one in trial.said if one not in right)
    return Verdict(bool(right), bool(timely), bool(placed), first, others, trial.error)


def names_one(said: Said, places: Sequence[str]) -> bool:
    """Whether its `where` is one of these places, or has one as a dotted part."""
    where = _parts(said.where)
    return any(_within(_parts(place), where) for place in places)


def _parts(name: str) -> list[str]:
    return [part.lower() for part in re.split(r"[^\w]+", name) if part]


def _within(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
