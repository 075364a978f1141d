"""Findings of the health rules as rows: what was found in many steps stands there once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shadowlab.report.wording import plain

_RANKS = {"critical": 0, "error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class HealthRow:
    """One rule on one layer. first, last: steps in which it was found. evidence, advice: of the last one."""

    severity: str
    rule: str
    layer: str
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
    """Findings with rule, severity, layer, step, evidence, advice; the gravest first, then as they were given."""
    rows: dict[tuple[str, str, str], HealthRow] = {}
    for finding in findings:
        severity, rule, layer = (str(finding.get(key) or "") for key in ("severity", "rule", "layer"))
        step = finding.get("step")
        last = step if isinstance(step, int) else None
        evidence, advice = (plain(finding[key]) if finding.get(key) else "" for key in ("evidence", "advice"))
        row = rows.get((severity, rule, layer))
        if row is None:
            rows[severity, rule, layer] = HealthRow(severity, rule, layer, last, last, 1, evidence, advice)
        else:
            rows[severity, rule, layer] = replace(row, last=last, times=row.times + 1, evidence=evidence, advice=advice)
    return sorted(rows.values(), key=lambda row: _rank(row.severity))


def _rank(severity: str) -> int:
    return _RANKS.get(severity.lower(), 1)
