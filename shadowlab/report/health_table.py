"""Findings of the health rules as rows: what was found in many steps stands there once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shadowlab.report.wording import plain

_RANKS = {"alarm": 0, "warning": 1, "notice": 2}


@dataclass(frozen=True)
class HealthRow:
    """One rule on one layer or parameter. first, last: steps in which it was found; the rest is of the last one."""

    severity: str
    rule: str
    place: str
    first: int | None
    last: int | None
    times: int
    evidence: str
    advice: str

    @property
    def grade(self) -> str:
        """grave, middling or slight: its colour."""
        return ("grave", "middling", "slight")[_rank(self.severity)]

    @property
    def steps(self) -> str:
        if self.first is None:
            return ""
        if self.first == self.last:
            return f"{self.first}"
        return f"{self.first} to {self.last}" + (f", {self.times} times" if self.times > 2 else "")


def health_rows(findings: Sequence[Mapping[str, Any]]) -> list[HealthRow]:
    """The gravest first, then as they were given.

    findings: with rule, severity, step, evidence, advice, layer or parameter, predicted_step; any may be absent.
    """
    rows: dict[tuple[str, str, str], HealthRow] = {}
    for finding in findings:
        place = str(finding.get("layer") or finding.get("parameter") or "")
        severity, rule = (str(finding.get(key) or "") for key in ("severity", "rule"))
        step, predicted = finding.get("step"), finding.get("predicted_step")
        last = step if isinstance(step, int) else None
        evidence, advice = (plain(finding[key]) if finding.get(key) else "" for key in ("evidence", "advice"))
        if predicted is not None:
            evidence = f"{evidence}; foretold for step {plain(predicted)}".lstrip("; ")
        row = rows.get((severity, rule, place))
        if row is None:
            row = HealthRow(severity, rule, place, last, last, 0, evidence, advice)
        row = replace(row, last=last, times=row.times + 1, evidence=evidence, advice=advice)
        rows[severity, rule, place] = row
    return sorted(rows.values(), key=lambda row: _rank(row.severity))


def _rank(severity: str) -> int:
    return _RANKS.get(severity.lower(), 1)
