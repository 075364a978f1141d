"""Score `explain`, and whatever else names origins, on the corpus of faults with known origins."""

import difflib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from diagnostics import Verdict, explain
from shadowlab.bench.corpus import FAULTS, Fault
from shadowlab.bench.peer_score import Peer, PeerReport, PeerResult, place_of, run_peer, summarise
from shadowlab.bench.peers import PEERS
from shadowlab.errors import UserError

# alarm: of a benign case, right where none is raised
FIELDS = ("phase", "exception", "cause", "place", "samples", "alarm")


@dataclass(frozen=True)
class Wrong:
    """A field in which the verdict is not what the case states."""

    field: str
    expected: str
    seen: str


@dataclass(frozen=True)
class CaseResult:
    """What became of one case."""

    name: str
    reference: str
    benign: bool
    right: Mapping[str, bool | None]
    """Field -> whether it is right; None where the case does not state it."""
    wrong: tuple[Wrong, ...]
    error: str | None
    """What the case raised."""
    verdict: dict[str, Any] | None
    seconds: float
    peers: Mapping[str, PeerResult]
    module_right: bool | None = None
    """None where the case states no module."""


@dataclass(frozen=True)
class Count:
    """Cases that are right, of those that state what is right."""

    right: int
    stated: int


@dataclass(frozen=True)
class FaultReport:
    """What `shadowlab bench faults` found."""

    cases: tuple[CaseResult, ...]
    peers: tuple[PeerReport, ...] = ()

    @property
    def totals(self) -> dict[str, Count]:
        """Field -> cases that are right of those that state it."""
        answers = {field: [c.right[field] for c in self.cases if c.right[field] is not None] for field in FIELDS}
        return {field: Count(sum(map(bool, values)), len(values)) for field, values in answers.items()}

    @property
    def num_benign(self) -> int:
        return sum(case.benign for case in self.cases)

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Benign cases in which `explain` found something."""
        return tuple(case.name for case in self.cases if case.benign and case.verdict is not None)

    @property
    def wrong(self) -> tuple[CaseResult, ...]:
        return tuple(case for case in self.cases if case.wrong)

    @property
    def passed(self) -> bool:
        """Every case right in all the fields that it states, and no false alarm."""
        return bool(self.cases) and not self.wrong

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "totals": {field: asdict(count) for field, count in self.totals.items()},
            "num_cases": len(self.cases),
            "num_benign": self.num_benign,
            "false_alarms": list(self.false_alarms),
            "cases": [asdict(case) for case in self.cases],
            "peers": [asdict(peer) for peer in self.peers],
        }


def score(fault: Fault, verdict: Verdict | None) -> dict[str, bool | None]:
    """Field -> whether the verdict has it right; None where the case does not state it."""
    right: dict[str, bool | None] = dict.fromkeys(FIELDS)
    if fault.expected is None:
        return {**right, "alarm": verdict is None}
    for field, stated in _stated(fault).items():
        right[field] = verdict is not None and all(_agree(key, stated[key], getattr(verdict, key)) for key in stated)
    return right


def _stated(fault: Fault) -> dict[str, dict[str, Any]]:
    """Field -> the parts of it that the case states."""
    expected = fault.expected
    if expected is None:
        return {}
    place = {key: getattr(expected, key) for key in ("op", "module", "parameter")}
    if expected.at_origin:
        if fault.origin is None:
            raise ValueError(f"{fault.name}: says `at_origin`, but marks no line")
        place["source"] = fault.origin
    fields = {key: {key: getattr(expected, key)} for key in ("phase", "exception", "cause", "samples")}
    fields["place"] = place
    stated = {field: {k: v for k, v in parts.items() if v is not ...} for field, parts in fields.items()}
    return {field: parts for field, parts in stated.items() if parts}


def _agree(key: str, expected: Any, seen: Any) -> bool:
    if key == "source":
        return seen is not None and place_of(expected) == place_of(seen)
    if key == "samples":
        return tuple(expected) == tuple(seen)
    return expected == seen


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
    faults = _chosen(FAULTS if corpus is None else corpus, names)
    present = [peer for peer in PEERS if peers and peer.version is not None]
    results = []
    for fault in faults:
        results.append(_run_case(fault, present))
        if on_case is not None:
            on_case(results[-1])
    summaries = tuple(summarise(peer, [(c.name, c.benign, c.peers.get(peer.name)) for c in results]) for peer in PEERS)
    return FaultReport(tuple(results), summaries if peers else ())


def _chosen(faults: Sequence[Fault], names: Sequence[str] | None) -> list[Fault]:
    by_name = {fault.name: fault for fault in faults}
    for name in names or ():
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=3)
            raise UserError(
                f"no fault is called {name!r}; {'close' if close else 'there are'}: {', '.join(close or by_name)}"
            )
    return list(faults) if names is None else [by_name[name] for name in names]


def _run_case(fault: Fault, peers: Iterable[Peer]) -> CaseResult:
    verdict, error, start = None, None, time.perf_counter()
    try:
        with _quiet():
            scene = fault.build()
            verdict = explain(scene.step, model=scene.model, optimizer=scene.optimizer, batch=scene.batch)
    except Exception as caught:  # one broken case must not hide the others
        error = f"{type(caught).__name__}: {caught}".splitlines()[0]
    seconds = time.perf_counter() - start
    try:
        right = score(fault, verdict)
        wrong = tuple(_wrongs(fault, verdict, right))
    except ValueError as caught:  # the case itself is wrong
        right, wrong, error = dict.fromkeys(FIELDS), (), error or str(caught)
    if error is not None:
        right = {field: None if answer is None else False for field, answer in right.items()}
        wrong = (Wrong("error", "no exception", error), *wrong)
    return CaseResult(
        name=fault.name,
        reference=fault.reference,
        benign=fault.expected is None,
        right=right,
        wrong=wrong,
        error=error,
        verdict=None if verdict is None else verdict.to_json(),
        seconds=seconds,
        peers={peer.name: _run_peer(peer, fault, verdict if right["place"] else None) for peer in peers},
        module_right=_module_right(fault, verdict),
    )


def _module_right(fault: Fault, verdict: Verdict | None) -> bool | None:
    if fault.expected is None or not isinstance(fault.expected.module, str):
        return None
    return verdict is not None and verdict.module == fault.expected.module


def _run_peer(peer: Peer, fault: Fault, known: Verdict | None) -> PeerResult:
    with _quiet():
        return run_peer(peer, fault, known)


@contextmanager
def _quiet() -> Iterator[None]:
    """The same randomness for everyone; nothing that a case does to it, or warns of, is left behind."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def _wrongs(fault: Fault, verdict: Verdict | None, right: Mapping[str, bool | None]) -> Iterator[Wrong]:
    if right["alarm"] is False and verdict is not None:
        yield Wrong("alarm", "none", f"{verdict.headline()}; {verdict.exception}, {verdict.cause}, {verdict.source}")
    for field, stated in _stated(fault).items():
        for key, value in stated.items():
            seen = "no finding" if verdict is None else getattr(verdict, key)
            if verdict is None or not _agree(key, value, seen):
                yield Wrong(field if field == key else f"{field}: {key}", str(value), str(seen))


def format_report(report: FaultReport) -> str:
    """Plain text: wrong cases, totals, and the peers' table if they ran."""
    parts = []
    if report.wrong:
        rows = [(case.name, w.field, w.expected, w.seen) for case in report.wrong for w in case.wrong]
        parts.append(_table(("case", "field", "expected", "seen"), rows))
    totals = [(field, f"{c.right} of {c.stated}") for field, c in report.totals.items() if field != "alarm"]
    totals.append(("false alarms", f"{len(report.false_alarms)} of {report.num_benign}"))
    totals.append(("cases all right", f"{len(report.cases) - len(report.wrong)} of {len(report.cases)}"))
    parts.append(_table(("explain", "right"), totals))
    if report.peers:
        parts.append(_peers_table(report))
    return "\n\n".join(parts)


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
    return _table(head, rows)


def _modules(report: FaultReport) -> str:
    stated = [case for case in report.cases if case.module_right is not None]
    return f"{sum(case.module_right is True for case in stated)} of {len(stated)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
