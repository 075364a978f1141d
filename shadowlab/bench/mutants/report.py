"""What `shadowlab bench silent --mutants` found, and its table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shadowlab.bench.mutants.mutant import STAGES
from shadowlab.bench.mutants.trial import MutantResult

LEAST_STOPPED, LEAST_PLACED = 0.95, 0.85


@dataclass(frozen=True)
class MutantReport:
    """All results, by family."""

    unmutated: MutantResult | None
    """None where it was not asked for."""
    results: tuple[MutantResult, ...]

    @property
    def is_quiet_without(self) -> bool:
        """Whether the unmutated copy passed every stage without a word."""
        return self.unmutated is None or not any(one.stopped or one.said for one in self.unmutated.outcomes)

    @property
    def num_stopped(self) -> int:
        return sum(one.stopped_by is not None for one in self.results)

    @property
    def num_placed(self) -> int:
        """Of those that were stopped: where the right place was named."""
        return sum(one.right_place for one in self.results)

    @property
    def passed(self) -> bool:
        enough = self.num_stopped >= LEAST_STOPPED * len(self.results)
        return (
            bool(self.results)
            and enough
            and self.num_placed >= LEAST_PLACED * self.num_stopped
            and self.is_quiet_without
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "mutants": len(self.results),
            "stopped": self.num_stopped,
            "right_place": self.num_placed,
            "quiet_without_mutant": self.is_quiet_without,
            "unmutated": None if self.unmutated is None else self.unmutated.to_json(),
            "results": [one.to_json() for one in self.results],
        }


def line(result: MutantResult) -> str:
    """One result as progress: `noise-constant: check-forward, place right (4 s)`."""
    seconds = sum(one.seconds for one in result.outcomes)
    stopped = result.stopped_by
    if stopped is None:
        asked = ", ".join(one.stage for one in result.outcomes) or "no stage"
        return f"{result.name}: SURVIVES {asked} ({seconds:.0f} s)"
    blames = "; ".join(stopped.blames)
    place = (
        "place right" if result.right_place else f"blames {blames or 'no place'}, it is {result.place or 'in the data'}"
    )
    return f"{result.name}: {stopped.stage}, {place} ({seconds:.0f} s)"


def format_table(report: MutantReport) -> str:
    """A row a family, the totals, and those that survive."""
    head = ("family", "mutants", *STAGES, "survive", "place right")
    families = list(dict.fromkeys(one.family for one in report.results))
    rows = [_row(name, [one for one in report.results if one.family == name]) for name in families]
    rows.append(_row("all", report.results))
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rule = tuple("-" * width for width in widths)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, rule, *rows)]
    survivors = [one.name for one in report.results if one.stopped_by is None]
    if survivors:
        lines += ["", f"survive: {', '.join(survivors)}"]
    if report.unmutated is not None:
        said = [f"{one.stage}: {one.said or 'failed'}" for one in report.unmutated.outcomes if one.stopped or one.said]
        lines += ["", f"unmutated: {'; '.join(said) if said else 'nothing is said'}"]
    return "\n".join(lines)


def _row(name: str, results: Sequence[MutantResult]) -> tuple[str, ...]:
    stopped = [one.stopped_by for one in results]
    counts = [str(sum(one is not None and one.stage == stage for one in stopped)) for stage in STAGES]
    right = sum(one.right_place for one in results)
    survive = sum(one is None for one in stopped)
    return (name, str(len(results)), *counts, str(survive), f"{right} of {len(results) - survive}")
