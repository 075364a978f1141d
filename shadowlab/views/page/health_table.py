"""Findings of the health rules as rows: what was reported in many steps has one row."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shadowlab.views.page.wording import plain

_RANKS = {"alarm": 0, "warning": 1, "notice": 2}


@dataclass(frozen=True)
class HealthRow:
    """One finding, as it was reported last."""

    severity: str
    rule: str
    place: str
    """Layer or parameter; empty where it is about neither."""
    first: int | None
    """First step in which it was reported."""
    last: int | None
    """Last step in which it was reported."""
    times: int
    """How often it was reported."""
    evidence: str
    advice: str

    @property
    def grade(self) -> str:
        """high, medium or low: its colour."""
        return ("high", "medium", "low")[_rank(self.severity)]

    @property
    def steps(self) -> str:
        if self.first is None:
            return ""
        if self.first == self.last:
            return f"{self.first}"
        return f"{self.first} to {self.last}" + (f", {self.times} times" if self.times > 2 else "")


def health_rows(found: Sequence[Mapping[str, Any]], reported: Sequence[Mapping[str, Any]] = ()) -> list[HealthRow]:
    """The most severe first, then as they were given.

    Findings have rule, severity, step, evidence, advice, layer or parameter, part, predicted_step; any may be absent.

    Args:
        found: by the rules at the end of the records: each has a row of its own.
        reported: while the run was under way, perhaps again after a resume: what is about the same has one row, and
            none where it is among `found`.
    """
    known = {_identity(finding) for finding in found}
    rows: dict[tuple[str, ...], HealthRow] = {}
    for finding in reported:
        key, row = (*_identity(finding), str(finding.get("severity"))), _row(finding)
        if key[:-1] not in known:
            rows[key] = _merged(rows[key], row) if key in rows else row
    return sorted([*map(_row, found), *rows.values()], key=lambda row: _rank(row.severity))


def _identity(finding: Mapping[str, Any]) -> tuple[str, ...]:
    """What distinguishes this finding from others of its kind: the place, or, where there is none, the evidence but
    for its numbers, which change from step to step."""
    place = _place(finding)
    condition = "" if place else re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", plain(finding.get("evidence")))
    return str(finding.get("rule") or ""), place, str(finding.get("part") or ""), condition


def _row(finding: Mapping[str, Any]) -> HealthRow:
    severity, rule = (str(finding.get(key) or "") for key in ("severity", "rule"))
    step, predicted = finding.get("step"), finding.get("predicted_step")
    known = step if isinstance(step, int) else None
    evidence, advice = (plain(finding[key]) if finding.get(key) else "" for key in ("evidence", "advice"))
    if predicted is not None:
        evidence = f"{evidence}; predicted for step {plain(predicted)}".lstrip("; ")
    return HealthRow(severity, rule, _place(finding), known, known, 1, evidence, advice)


def _merged(row: HealthRow, later: HealthRow) -> HealthRow:
    steps = [step for step in (row.first, row.last, later.first) if step is not None]
    first, last = min(steps, default=None), max(steps, default=None)
    return replace(later, first=first, last=last, times=row.times + 1)


def _place(finding: Mapping[str, Any]) -> str:
    return str(finding.get("layer") or finding.get("parameter") or "")


def _rank(severity: str) -> int:
    return _RANKS.get(severity.lower(), 1)
