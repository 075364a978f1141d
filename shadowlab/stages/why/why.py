"""why: the verdict of an incident, and what the same step would have done otherwise."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from diagnostics import Verdict, read_verdict_file
from diagnostics.files import is_inside, paths_in, reason_of, replace_text
from diagnostics.records import encode
from shadowlab.console import Column, FittedTable, Reporter
from shadowlab.distributed import pick_device
from shadowlab.errors import UserError
from shadowlab.plain_text import counted
from shadowlab.runs import required_runs, run_places, telling_where
from shadowlab.settings import Config
from shadowlab.stages.why.conclusion import conclude
from shadowlab.stages.why.counterfactuals import (
    FINITE,
    NOT_RUN,
    OTHER,
    SOME_FAIL,
    STEP_COUNTERFACTUALS,
    Case,
    Counterfactual,
    Outcome,
    run_counterfactual,
)
from shadowlab.stages.why.operator_alone import operator_outcomes
from shadowlab.stages.why.replay import Replay
from shadowlab.training import CapturedStep

NAMES = (*(one.name for one in STEP_COUNTERFACTUALS), "operator")
FILE = "why.json"  # of an incident: what --json prints
_ELSEWHERE = "a link that leads out of its run, which is not read; name the folder that it leads to"
_STYLES = {FINITE: "green", OTHER: "yellow", SOME_FAIL: "magenta", NOT_RUN: "dim"}


@telling_where()
def find_incident(path: str, output_dir: str | None = None) -> Path:
    """The incident folder that `path` names: itself, the newest of a run folder, or of a run below `output_dir`.

    Raises:
        UserError: there is none, and which runs next to it have one, or it cannot be looked at.
    """
    runs = Path(output_dir or Config().output_dir)
    given, below = run_places(path, output_dir, having="incident")
    for place in (given, below):
        if (place / "verdict.json").is_file():
            if place.parent.name == "incidents" and not is_inside(place, place.parent.parent):
                raise UserError(f"{place}: {_ELSEWHERE}")
            return place
        folder = place if place.name == "incidents" else place / "incidents"
        incidents = _incidents(folder)
        if incidents:
            return incidents[-1]
        inner = [one for run in required_runs(place) for one in _incidents(run / "incidents")]
        if inner:  # of a stage that a training ran before
            return inner[-1]
        damaged = sorted(found for found in folder.glob("step-*") if found.is_dir())
        if damaged and not is_inside(damaged[-1], folder.parent):
            raise UserError(f"{damaged[-1]}: {_ELSEWHERE}")
        if damaged:
            raise UserError(f"{damaged[-1] / 'verdict.json'}: missing; the incident is damaged")
        if folder.is_dir() or any((place / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
            raise UserError(f"{place}: has no incident, so no step of it met NaN or Inf{_neighbours(place)}")
    if given.exists():
        raise UserError(f"{given}: neither a run folder nor an incident folder (no verdict.json, no incidents/)")
    raise UserError(f"{path}: no such run or incident, here or in {runs}/; `shadowlab runs` shows the runs there are")


def run_why(
    incident: Path, reporter: Reporter, *, device: str | None, only: Sequence[str], counterfactuals: bool
) -> None:
    """Print the verdict, run the counterfactuals that it asks for, and conclude.

    Args:
        device: None for the kind of device that the step ran on, where there is one.
        only: names of `NAMES`; those are run even where the verdict gives no reason to.

    Raises:
        UserError: an unknown name or device, or a damaged file of the incident.
    """
    _require_names(only)
    verdict = _read_verdict(incident)
    reporter.say(f"{incident}", style="bold")
    reporter.say(str(verdict))
    document: dict[str, Any] = {"incident": str(incident), "verdict": verdict.to_json()}
    if not counterfactuals:
        reporter.result(document)
        return
    left_out: list[tuple[str, str]] = []
    outcomes: list[Outcome] = []
    replay, chosen = None, _pick_device(incident, device, reporter)
    if (incident / "step.json").is_file():
        replay = Replay(incident, chosen)
        reporter.say(f"\nrepeated on {chosen} from {replay.origin()}")
        for difference in replay.differences():
            reporter.warn(difference)
    else:
        reason = "no step.json: the step was not captured by this harness"
        left_out += [(one.name, reason) for one in STEP_COUNTERFACTUALS if not only or one.name in only]
        reporter.warn(reason)
    reporter.say(_what_follows(verdict, replay, only))
    with reporter.start("counterfactuals", len(NAMES), noun="counterfactual"):
        for number, outcome in _all_outcomes(verdict, replay, incident, chosen, only, left_out):
            if isinstance(outcome, Outcome):
                outcomes.append(outcome)
                if not reporter.console.is_terminal:
                    reporter.say(_line(outcome))
            reporter.advance(number, len(NAMES), {}, log=False)
    if reporter.console.is_terminal:
        reporter.table(_table(outcomes))
    for reason in dict.fromkeys(reason for _, reason in left_out):
        names = ", ".join(name for name, why_not in left_out if why_not == reason)
        reporter.say(f"left out: {names}: {reason}", style="dim")
    conclusion = conclude(verdict, outcomes, is_exact=replay is None or replay.is_exact)
    reporter.say(f"\nconclusion: {conclusion}", style="bold")
    document |= {
        "device": str(chosen),
        "from": None if replay is None else replay.origin(),
        "is_exact": None if replay is None else replay.is_exact,
        "differences": [] if replay is None else replay.differences(),
        "counterfactuals": [asdict(outcome) for outcome in outcomes],
        "left_out": [{"kind": name, "reason": reason} for name, reason in left_out],
        "conclusion": conclusion,
    }
    if not only:
        _keep(incident, document, reporter)
    reporter.result(document)


def _require_names(only: Sequence[str]) -> None:
    for name in only:
        if name not in NAMES:
            raise UserError(f"--only {name}: no such counterfactual; there are {', '.join(NAMES)}")


def _keep(incident: Path, document: dict[str, Any], reporter: Reporter) -> None:
    """As why.json in the incident, where the report shows it."""
    file = incident / FILE
    try:
        replace_text(file, json.dumps(encode(document), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        reporter.warn(f"{file}: not kept ({reason_of(error)})")


def _all_outcomes(
    verdict: Verdict,
    replay: Replay | None,
    incident: Path,
    device: torch.device,
    only: Sequence[str],
    left_out: list[tuple[str, str]],
) -> Iterator[tuple[int, Outcome | None]]:
    """(number of the counterfactual, outcome, or None where it is done). Appends what is left out, with the reason."""
    number = 0
    if replay is not None:
        case = Case(verdict, replay)
        again_is_finite = False
        for number, one in enumerate(STEP_COUNTERFACTUALS, start=1):
            if only and one.name not in only:
                continue
            reason = _reason(one, case, forced=bool(only))
            if reason is None and again_is_finite and not only and one.name != "weights":
                reason = "the step was finite when repeated: nothing to compare with"
            if reason is not None:
                left_out.append((one.name, reason))
            else:
                for outcome in run_counterfactual(one, case):
                    again_is_finite |= (outcome.kind, outcome.result) == ("again", FINITE)
                    yield number, outcome
            yield number, None
    if not only or "operator" in only:
        for outcome in operator_outcomes(incident, verdict, device):
            if outcome.result == NOT_RUN and not only and not (incident / "repro.py").is_file():
                left_out.append(("operator", outcome.meaning))
            else:
                yield number + 1, outcome
    yield len(NAMES), None


def _what_follows(verdict: Verdict, replay: Replay | None, only: Sequence[str]) -> str:
    """How many outcomes are to come: what can be told before the first is there."""
    asked = [one for one in STEP_COUNTERFACTUALS if not only or one.name in only]
    case = None if replay is None else Case(verdict, replay)
    planned = [one.title for one in asked if case is not None and _reason(one, case, forced=bool(only)) is None]
    planned += ["the operator alone"] if not only or "operator" in only else []
    if not planned:
        return "nothing to try"
    return f"{counted(len(planned), 'change')} to try, one after the other: {', '.join(planned)}"


def _reason(one: Counterfactual, case: Case, *, forced: bool) -> str | None:
    return one.possible(case) or (None if forced else one.why_not(case))


def _pick_device(incident: Path, device: str | None, reporter: Reporter) -> torch.device:
    """The one asked for, else of the kind that the step ran on; a warning where that is absent comes later."""
    if device is not None:
        return pick_device(device)
    if not (incident / "step.json").is_file():
        return pick_device("cpu")
    kind = torch.device(CapturedStep.read(incident).device).type
    return pick_device("auto" if kind == "cuda" else kind)


def _read_verdict(incident: Path) -> Verdict:
    try:
        return read_verdict_file(incident / "verdict.json")
    except ValueError as error:
        raise UserError(str(error)) from error


def _incidents(folder: Path) -> list[Path]:
    """Incidents in a run's folder, the newest last."""
    found = [file.parent for file in paths_in(folder, "step-*/verdict.json", inside=folder.parent)]
    return sorted(found, key=lambda place: ((place / "verdict.json").stat().st_mtime_ns, place.name))


def _neighbours(run: Path) -> str:
    """A train run's required stages have folders of their own next to it."""
    found = sorted(p.name for p in run.parent.glob(f"{run.name}-*") if _incidents(p / "incidents"))
    return f"; next to it: {', '.join(found)}" if found else ""


def _line(outcome: Outcome) -> str:
    detail = f" ({outcome.detail})" if outcome.detail else ""
    return f"{outcome.name}: {outcome.result}{detail}: {outcome.meaning}"


def _table(outcomes: Sequence[Outcome]) -> FittedTable:
    table = FittedTable(
        (
            Column("what was changed", is_head=True, wraps=True),
            Column("outcome"),
            Column("what it means", wraps=True),
        )
    )
    for outcome in outcomes:
        meaning = f"{outcome.meaning}\n{outcome.detail}" if outcome.detail else outcome.meaning
        table.add_row(outcome.name, Text(outcome.result, _STYLES.get(outcome.result, "red")), meaning)
    return table
