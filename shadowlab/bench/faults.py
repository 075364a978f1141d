"""Score `explain`, `Watch`, and whatever else names origins, on the corpus of faults with known origins."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diagnostics import Verdict
from shadowlab.bench.case_trial import Trial, explained, quiet, watched
from shadowlab.bench.corpus import FAULTS, Fault
from shadowlab.bench.listing import chosen, table
from shadowlab.bench.peer_score import Peer, PeerReport, PeerResult, run_peer, summarise
from shadowlab.bench.peers import PEERS
from shadowlab.bench.scoring import Count, Wrong, score, totals

__all__ = ["CaseResult", "FaultReport", "WatchedResult", "format_report", "run_faults", "score"]


@dataclass(frozen=True)
class WatchedResult:
    """What became of one case's loop under `Watch`."""

    right: Mapping[str, bool | None]
    """Field -> whether it is right; None where the case does not state it."""
    wrong: tuple[Wrong, ...]
    error: str | None
    """What the loop raised and should not have."""
    verdict: dict[str, Any] | None
    seconds: float


@dataclass(frozen=True)
class CaseResult:
    """What became of one case: its step under `explain`, its loop under `Watch`, and the other tools."""

    name: str
    reference: str
    benign: bool
    right: Mapping[str, bool | None]
    """Field -> whether `explain` has it right; None where the case does not state it."""
    wrong: tuple[Wrong, ...]
    error: str | None
    """What the case raised."""
    verdict: dict[str, Any] | None
    seconds: float
    peers: Mapping[str, PeerResult]
    watched: WatchedResult
    module_right: bool | None = None
    """None where the case states no module."""


@dataclass(frozen=True)
class FaultReport:
    """What `shadowlab bench faults` found."""

    cases: tuple[CaseResult, ...]
    peers: tuple[PeerReport, ...] = ()

    @property
    def totals(self) -> dict[str, Count]:
        """Field -> cases that are right under `explain`, of those that state it."""
        return totals([case.right for case in self.cases])

    @property
    def totals_watched(self) -> dict[str, Count]:
        """Field -> cases that are right under `Watch`, of those that state it."""
        return totals([case.watched.right for case in self.cases])

    @property
    def num_benign(self) -> int:
        return sum(case.benign for case in self.cases)

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Benign cases in which `explain` found something."""
        return tuple(case.name for case in self.cases if case.benign and case.verdict is not None)

    @property
    def false_alarms_watched(self) -> tuple[str, ...]:
        """Benign cases in which `Watch` found something."""
        return tuple(case.name for case in self.cases if case.benign and case.watched.verdict is not None)

    @property
    def wrong(self) -> tuple[CaseResult, ...]:
        return tuple(case for case in self.cases if case.wrong or case.watched.wrong)

    @property
    def passed(self) -> bool:
        """Every case right in all the fields that it states, under both, and no false alarm."""
        return bool(self.cases) and not self.wrong

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "totals": {field: asdict(count) for field, count in self.totals.items()},
            "totals_watched": {field: asdict(count) for field, count in self.totals_watched.items()},
            "num_cases": len(self.cases),
            "num_benign": self.num_benign,
            "false_alarms": list(self.false_alarms),
            "false_alarms_watched": list(self.false_alarms_watched),
            "cases": [asdict(case) for case in self.cases],
            "peers": [asdict(peer) for peer in self.peers],
        }


def run_faults(
    names: Sequence[str] | None = None,
    peers: bool = False,
    on_case: Callable[[CaseResult], None] | None = None,
    *,
    corpus: Sequence[Fault] | None = None,
) -> FaultReport:
    """Run cases, each rebuilt for every tool, and score them.

    Args:
        names: of the cases; all by default.
        peers: whether to run the other tools, too.
        on_case: called after each case.
        corpus: instead of `FAULTS`.

    Raises:
        UserError: no case has such a name.
    """
    faults = chosen(FAULTS if corpus is None else corpus, names, "fault")
    present = [peer for peer in PEERS if peers and peer.version is not None]
    results = []
    for fault in faults:
        results.append(_run_case(fault, present))
        if on_case is not None:
            on_case(results[-1])
    summaries = tuple(summarise(peer, [(c.name, c.benign, c.peers.get(peer.name)) for c in results]) for peer in PEERS)
    return FaultReport(tuple(results), summaries if peers else ())


def _run_case(fault: Fault, peers: Iterable[Peer]) -> CaseResult:
    found, seen = explained(fault), watched(fault)
    known = found.verdict if found.right["place"] else None
    return CaseResult(
        name=fault.name,
        reference=fault.reference,
        benign=fault.expected is None,
        right=found.right,
        wrong=found.wrong,
        error=found.error,
        verdict=_json(found),
        seconds=found.seconds,
        peers={peer.name: _run_peer(peer, fault, known) for peer in peers},
        watched=WatchedResult(seen.right, seen.wrong, seen.error, _json(seen), seen.seconds),
        module_right=_module_right(fault, found.verdict),
    )


def _json(trial: Trial) -> dict[str, Any] | None:
    return None if trial.verdict is None else trial.verdict.to_json()


def _module_right(fault: Fault, verdict: Verdict | None) -> bool | None:
    if fault.expected is None or not isinstance(fault.expected.module, str):
        return None
    return verdict is not None and verdict.module == fault.expected.module


def _run_peer(peer: Peer, fault: Fault, known: Verdict | None) -> PeerResult:
    with quiet():
        return run_peer(peer, fault, known)


def format_report(report: FaultReport) -> str:
    """Plain text: wrong cases, totals, and the peers' table if they ran."""
    parts = []
    if report.wrong:
        rows = [
            (case.name, tool, wrong.field, wrong.expected, wrong.seen)
            for case in report.wrong
            for tool, result in (("explain", case), ("Watch", case.watched))
            for wrong in result.wrong
        ]
        parts.append(table(("case", "under", "field", "expected", "seen"), rows))
    parts.append(_totals_table(report))
    if report.peers:
        parts.append(_peers_table(report))
    return "\n\n".join(parts)


def _totals_table(report: FaultReport) -> str:
    columns = (report.totals, report.totals_watched)
    rows = []
    for field in report.totals:
        if field != "alarm":
            name = {"state": "state as before"}.get(field, field)
            rows.append(
                (name, *(f"{c[field].right} of {c[field].stated}" if c[field].stated else "-" for c in columns))
            )
    alarms = (report.false_alarms, report.false_alarms_watched)
    rows.append(("false alarms", *(f"{len(names)} of {report.num_benign}" for names in alarms)))
    right = (sum(not case.wrong for case in report.cases), sum(not case.watched.wrong for case in report.cases))
    rows.append(("cases all right", *(f"{count} of {len(report.cases)}" for count in right)))
    return table(("right", "explain", "Watch"), rows)


def _peers_table(report: FaultReport) -> str:
    head = ("tool", "names the origin", "the module", "false alarms", "crashes", "")
    place, errors = report.totals["place"], sum(case.error is not None for case in report.cases)
    alarms = f"{len(report.false_alarms)} of {report.num_benign}"
    rows = [("explain", f"{place.right} of {place.stated}", _modules(report), alarms, str(errors), "")]
    for peer in report.peers:
        if peer.missing:
            rows.append((peer.name, "-", "-", "-", "-", peer.missing))
            continue
        origin, module = f"{peer.right} of {peer.stated}", f"{peer.in_module} of {peer.stated_modules}"
        alarms = f"{len(peer.false_alarms)} of {peer.num_benign}"
        rows.append((f"{peer.name} {peer.version}", origin, module, alarms, str(peer.errors), ""))
    return table(head, rows)


def _modules(report: FaultReport) -> str:
    stated = [case for case in report.cases if case.module_right is not None]
    return f"{sum(case.module_right is True for case in stated)} of {len(stated)}"
