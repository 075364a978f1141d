"""Counts over all cases, as text and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shadowlab.bench.listing import table
from shadowlab.bench.scoring import Count
from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.score import WITHIN, Verdict
from shadowlab.bench.silent.tools import Said

ENOUGH = 0.95
"""Share of the faults that must be found in time."""


@dataclass(frozen=True)
class CaseResult:
    """One case under one tool."""

    case: Case
    verdict: Verdict
    seconds: float

    def to_json(self) -> dict[str, Any]:
        expected = self.case.expected
        return {
            "name": self.case.name,
            "reference": self.case.reference,
            "host": self.case.host,
            "tags": list(self.case.tags),
            "held_out": self.case.held_out,
            "expected": None if expected is None else asdict(expected),
            **asdict(self.verdict),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class ToolReport:
    """One tool over all cases."""

    name: str
    version: str | None
    missing: str | None
    """Why it did not run."""
    results: tuple[CaseResult, ...]

    @property
    def faults(self) -> list[CaseResult]:
        return [one for one in self.results if not one.case.healthy]

    @property
    def healthy(self) -> list[CaseResult]:
        return [one for one in self.results if one.case.healthy]

    @property
    def false_alarms(self) -> list[str]:
        """Healthy loops of which it said an alarm."""
        return [one.case.name for one in self.healthy if one.verdict.alarms]

    @property
    def false_warnings(self) -> list[str]:
        """Healthy loops of which it said a warning and no alarm."""
        return [one.case.name for one in self.healthy if one.verdict.others and not one.verdict.alarms]

    @property
    def errors(self) -> list[str]:
        return [one.case.name for one in self.results if one.verdict.error is not None]

    def to_json(self) -> dict[str, Any]:
        counts = {name: asdict(counted) for name, counted in _counts(self.faults).items()}
        held_out = {name: asdict(counted) for name, counted in _counts(_held_out(self.faults)).items()}
        return {
            "name": self.name,
            "version": self.version,
            "missing": self.missing,
            "totals": counts,
            "totals_held_out": held_out,
            "num_healthy": len(self.healthy),
            "false_alarms": self.false_alarms,
            "false_warnings": self.false_warnings,
            "errors": self.errors,
            "cases": [one.to_json() for one in self.results],
        }


@dataclass(frozen=True)
class SilentReport:
    """What `shadowlab bench silent` found: `Watch` first, then the others."""

    tools: tuple[ToolReport, ...]
    left_out: Mapping[str, str]
    """Case -> library that is not installed."""

    @property
    def passed(self) -> bool:
        """`Watch` found enough of the faults in time, said nothing alarming of healthy loops, and broke none."""
        ours = self.tools[0]
        in_time = sum(one.verdict.in_time for one in ours.faults)
        enough = in_time >= ENOUGH * len(ours.faults)
        return bool(ours.results) and enough and not ours.false_alarms and not ours.errors

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "left_out": dict(self.left_out),
            "tools": [tool.to_json() for tool in self.tools],
        }


def _held_out(results: Iterable[CaseResult], held_out: bool = True) -> list[CaseResult]:
    return [one for one in results if one.case.held_out is held_out]


def _counts(results: Sequence[CaseResult]) -> dict[str, Count]:
    fields = ("found", "in_time", "placed")
    return {name: Count(sum(getattr(one.verdict, name) for one in results), len(results)) for name in fields}


def format_report(report: SilentReport) -> str:
    """Plain text: what `Watch` missed and said wrongly, then the table of tools."""
    parts = []
    ours = report.tools[0]
    missed = [row for one in ours.faults for row in _missed(one)]
    if missed:
        parts.append(table(("fault", "host", "expected", "seen"), missed))
    wrong = [(one.case.name, one.case.host, *_cells(said)) for one in ours.healthy for said in one.verdict.others]
    if wrong:
        parts.append(table(("healthy loop", "host", "severity", "step", "said"), wrong))
    errors = [(one.case.name, one.case.host, one.verdict.error) for one in ours.results if one.verdict.error]
    if errors:
        parts.append(table(("loop", "host", "ended with"), errors))
    parts.append(_tools(report))
    if report.left_out:
        libraries = ", ".join(sorted(set(report.left_out.values())))
        parts.append(f"{len(report.left_out)} cases left out: {libraries} not installed")
    return "\n\n".join(parts)


def _missed(result: CaseResult) -> list[tuple[str, str, str, str]]:
    verdict, expected = result.verdict, result.case.expected
    assert expected is not None
    rules = " or ".join(expected.rules)
    if not verdict.found:
        return [(result.case.name, result.case.host, rules, _others(verdict))]
    if not verdict.in_time:
        seen = f"at step {verdict.step}"
        return [
            (result.case.name, result.case.host, f"at step {expected.visible} to {expected.visible + WITHIN}", seen)
        ]
    if not verdict.placed:
        return [(result.case.name, result.case.host, f"named: {' or '.join(expected.where)}", "another place")]
    return []


def _others(verdict: Verdict) -> str:
    return ", ".join(sorted({one.rule for one in verdict.others})) or "nothing"


def _cells(said: Said) -> tuple[str, str, str]:
    where = f" ({said.where})" if said.where else ""
    return said.severity, str(said.step), f"{said.rule}{where}: {said.text}"


def _tools(report: SilentReport) -> str:
    head = ("tool", "cases", "found", f"within {WITHIN} steps", "place named", "false alarms", "warnings", "broken")
    rows = []
    for tool in report.tools:
        name = f"{tool.name} {tool.version}" if tool.version else tool.name
        if tool.missing:
            rows.append((name, tool.missing, *[""] * (len(head) - 2)))
            continue
        rows.append((name, "all", *_figures(tool.faults), *_alarms(tool)))
        for which, of_them in (("open", _held_out(tool.faults, False)), ("held out", _held_out(tool.faults))):
            if of_them:
                rows.append(("", which, *_figures(of_them), "", "", ""))
    return table(head, rows)


def _figures(results: Sequence[CaseResult]) -> tuple[str, ...]:
    return tuple(f"{one.right} of {one.stated}" for one in _counts(results).values())


def _alarms(tool: ToolReport) -> tuple[str, str, str]:
    healthy = len(tool.healthy)
    return f"{len(tool.false_alarms)} of {healthy}", f"{len(tool.false_warnings)} of {healthy}", str(len(tool.errors))
