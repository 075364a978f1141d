"""The runs of a folder at a glance: what each came to, without reading all that it wrote."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostics.files import reason_of
from diagnostics.records import WORDS, Kinds
from shadowlab.errors import UserError
from shadowlab.runs.folder import REQUIRED, RunFolder
from shadowlab.runs.lookup import last_activity, required_runs
from shadowlab.runs.tail import first_header, last_records

_CUT_LINE = 2**16  # bytes


@dataclass(frozen=True)
class RunSummary:
    """One folder of an output folder."""

    path: Path
    state: str
    """running, passed, failed, interrupted, `NaN at step 412`, empty (nothing is recorded), no result (records of a
    loop that has no stages), damaged, or not a run."""
    stage: str = ""
    """The one that the state is about."""
    step: int | None = None
    """The last that is recorded."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """What the records say about themselves."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The numbers of the last one, as far as 16 MiB of records reach back."""
    last_activity: float | None = None
    """When a stage last wrote, in seconds since 1970."""
    num_bytes: int = 0
    """Of all files."""
    problem: str = ""
    """What could not be read; the rest is as far as it could."""


def list_runs(output_dir: Path) -> list[RunSummary]:
    """Every folder below `output_dir`, the one that was worked at last first; what is no run comes last.

    The stages that a training ran before, which lie inside its folder, follow it.

    Raises:
        UserError: it is no folder, or a run itself, or cannot be looked at.
    """
    if (output_dir / "metrics.jsonl").is_file():
        raise UserError(f"{output_dir}: is a run itself; name the folder that holds runs")
    try:
        places = [place for place in output_dir.iterdir() if place.is_dir() and not place.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"{output_dir}: no folder of runs ({error.strerror}); `shadowlab overfit` makes a first run in runs/"
        ) from None
    found = sorted(
        (_summarize(place) for place in places), key=lambda one: (-(one.last_activity or 0.0), one.path.name)
    )
    return [one for run in found for one in (run, *_before(run))]


def _before(run: RunSummary) -> list[RunSummary]:
    """The stages inside its folder, in the order in which they ran."""
    if run.last_activity is None:
        return []
    try:
        found = [_summarize(place) for place in required_runs(run.path)]
    except OSError:  # its own line says what cannot be looked at
        return []
    return sorted(found, key=lambda one: (one.last_activity or 0.0, one.path.name))


def _summarize(place: Path) -> RunSummary:
    try:
        active = last_activity(place)
        if active is None:
            return RunSummary(place, "not a run", num_bytes=_size(place))
        size = _size(place)
    except OSError as error:
        return RunSummary(place, "damaged", problem=f"{error.filename}: cannot be looked at ({error.strerror})")
    run, problem = RunFolder(place), ""
    tail, header, stages = _Tail(), dict[str, Any](), dict[str, Any]()
    try:
        stages = run.stages()
        if run.metrics.exists():
            header = first_header(run.metrics)
            tail.read(run.metrics, header)
    except OSError as error:
        problem = f"{error.filename or run.metrics}: cannot be read ({reason_of(error)})"
    except (UserError, ValueError) as error:
        problem = str(error)
    name, state = _outcome(run, tail, header, stages)
    if state == "empty" and not problem and tail.num_records == 0 and _more_than_a_cut_line(run.metrics):
        problem = f"{run.metrics}: holds no record that can be read"
    if state == "empty" and (problem or any((place / REQUIRED).glob("*"))):
        state = "damaged" if problem else "interrupted"  # the latter in a stage that it ran before
    return RunSummary(place, state, name, tail.step, header, tail.evaluation, active, size, problem)


def _more_than_a_cut_line(metrics: Path) -> bool:
    """Of which nothing could be read: a kill leaves half a line, a power cut any number of zeros."""
    return metrics.exists() and metrics.stat().st_size > _CUT_LINE


class _Tail:
    """What the end of the records says."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.ending: Mapping[str, Any] = {}  # the last record that is a step, a stage's result or an incident
        self.incident: Mapping[str, Any] | None = None  # no step came after it
        self.evaluation: Mapping[str, Any] = {}
        self.num_records = 0

    def read(self, metrics: Path, header: Mapping[str, Any]) -> None:
        """As far back as it has to. header: the first, which says what the training steps are called."""
        kinds, has_step = Kinds(), False
        kinds.learn(header)
        for record in last_records(metrics):
            kind = kinds.learn(record)
            self.num_records += 1
            if self.step is None and isinstance(record.get("step"), int):
                self.step = record["step"]
            is_evaluation = kinds.is_evaluation(kind)
            if is_evaluation:
                self.evaluation = self.evaluation or record
            elif kind == "incident" and not has_step:
                self.incident = record
            if not is_evaluation and kind not in ("header", "health"):
                self.ending = self.ending or record
            has_step = has_step or not (is_evaluation or kind in WORDS)
            if has_step and self.evaluation:
                return


def _outcome(
    run: RunFolder, tail: _Tail, header: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str]:
    """Stage and state."""
    last = max(stages, key=lambda name: str(stages[name]["finished"]), default="")
    trained = str(header.get("stage") or last)
    kind = tail.ending.get("kind", "train") if tail.ending else None
    if run.is_claimed:
        return trained, "running"
    if tail.incident is not None:
        verdict = tail.incident.get("verdict")
        value = verdict.get("value") if isinstance(verdict, Mapping) else None
        return trained, f"{'NaN' if value in (None, 'nan') else 'Inf'} at step {tail.incident.get('step')}"
    if kind == "stage":
        return str(tail.ending.get("stage") or last), "passed" if tail.ending.get("passed") is True else "failed"
    is_recorded = bool(last) and stages[last]["summary"].get("steps") == tail.step
    if last and (kind is None or is_recorded):  # a full disk kept its record out of metrics.jsonl
        return last, "passed" if stages[last]["passed"] else "failed"
    if kind is None:
        return trained, "empty"
    return trained, "interrupted" if (run.path / "config.yaml").is_file() else "no result"


def _size(place: Path) -> int:
    """Bytes of all files below a folder; links are not followed. What goes meanwhile, as an old checkpoint of a run at
    work does, has none.

    Raises:
        OSError: a folder cannot be looked at.
    """
    total, folders = 0, [os.fspath(place)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                with suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
