"""Everything of a run's folder that the page shows. What is damaged or absent is said, and the rest is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostics import read_verdict
from diagnostics.files import is_inside, paths_in, read_json, read_text, reason_of
from diagnostics.health import examine
from diagnostics.records import History, decode
from shadowlab.charts import Chart
from shadowlab.plain_text import counted
from shadowlab.runs import RunFolder
from shadowlab.views.charts import Plot, charts_in, judged_keys, plots, plots_of
from shadowlab.views.page.incident_story import IncidentStory
from shadowlab.views.page.sessions import Session, resumed_sessions

_MAX_STORIES = 25  # shown in full; a run has rarely more than one


@dataclass(frozen=True)
class Status:
    """The verdict on a run."""

    word: str
    """passed, failed, incident, running, stopped, recorded or empty."""
    line: str
    """The verdict in words."""


@dataclass(frozen=True)
class RunView:
    """A run's folder, read once."""

    path: Path
    history: History
    plots: tuple[Plot, ...] = ()
    """What is drawn of the history."""
    charts: tuple[Chart, ...] = ()
    """What the task wants drawn of its evaluations; none where the records do not say it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    incidents: tuple[IncidentStory, ...] = ()
    """The newest first."""
    older_incidents: tuple[str, ...] = ()
    is_running: bool = False
    problems: tuple[str, ...] = ()
    """What could not be read, with file and fix."""

    @classmethod
    def read(cls, path: Path) -> "RunView":
        problems: list[str] = []
        history = _history(path / "metrics.jsonl", problems)
        folders = _incident_folders(path)
        recorded = {record["step"]: record.get("verdict") for record in history.records("incident")}
        stories = [_story(folder, recorded.get(_step_of(folder)), path) for folder in folders[:_MAX_STORIES]]
        for step in sorted(recorded.keys() - {_step_of(folder) for folder in folders}, reverse=True):
            stories.append(_story(path / "incidents" / f"step-{step:08d}", recorded[step], path))
        return cls(
            path,
            history,
            *_plots(history, problems),
            _json_object(path / "environment.json", problems),
            _text(path / "config.yaml", problems),
            _stages(path / "stages.json", problems),
            tuple(stories),
            tuple(folder.name for folder in folders[_MAX_STORIES:]),
            RunFolder(path).is_claimed,
            tuple(problems),
        )

    @property
    def name(self) -> str:
        return self.path.resolve().name  # the path may be `.`

    @property
    def last_stage(self) -> tuple[str, Mapping[str, Any]] | None:
        """Name and result of the stage that came to one last."""
        ordered = sorted(self.stages.items(), key=lambda item: str(item[1].get("finished", "")))
        return ordered[-1] if ordered else None

    @property
    def status(self) -> Status:
        """The verdict on the run, from what its files say."""
        last, step = self.last_stage, self.history.last_step
        if self.is_running:
            return Status("running", self._progress(step))
        if last is not None and last[1].get("passed"):
            name, result = last
            earlier = f"; {counted(len(self.incidents), 'incident')} before that" if self.incidents else ""
            steps = _summary(result).get("steps")
            reached = self._trained_until(name)
            if isinstance(steps, int) and reached > steps:  # resumed, and killed before it came to a result again
                passed = f"{name} passed at {counted(steps, 'step')}, was resumed"
                return Status("stopped", f"{passed}, and stopped at step {reached} without a result")
            taken = f", {counted(steps, 'step')}" if isinstance(steps, int) else ""
            return Status("passed", f"{name}{taken}{earlier}")
        resumed = ""
        if self.incidents:
            at = _step_of(self.incidents[0].folder)
            reached = self._trained_until(self.history.kind)
            if at < 0 or reached < at or (last is None and self._is_foreign and reached == at):
                return Status("incident", self.incidents[0].headline)
            resumed = f", {'went on' if self._is_foreign else 'resumed'} after an incident at step {at}"
        if last is not None:
            name, error = last[0], str(_summary(last[1]).get("error", ""))
            if self._went_on_after(name, error):
                reached = self._trained_until(name)
                after = resumed or ", resumed after a failure"
                return Status("stopped", f"{name} stopped at step {reached} without a result{after}")
            return Status("failed", ": ".join(filter(None, (name, error.partition("\n")[0]))))
        if step and self._is_foreign:
            return Status("recorded", f"{counted(step, 'step')} of a loop that has no stages{resumed}")
        if step or self.history.kinds:
            line = f"no stage came to a result: interrupted or killed after {counted(step, 'step')}"
            return Status("stopped", f"{line}{resumed}")
        return Status("empty", "nothing is recorded yet: no stage came to a result, and no step was taken")

    @property
    def _is_foreign(self) -> bool:
        """Whether the records are of a loop that is not this harness's: it names neither command nor configuration."""
        headers = self.history.headers
        return bool(headers) and not self.config and not any("command" in header for header in headers)

    def _progress(self, step: int) -> str:
        """Of the stage that trains; of another only that there is one: it claims the folder and records no step."""
        header = self.history.headers[-1] if self.history.headers else {}
        if header.get("stage") and self.history.last_stage is None:
            return f"{header['stage']} is under way, {counted(step, 'step')} so far"
        return "a stage is under way" + (f"; {counted(step, 'step')} recorded" if step else "")

    def _went_on_after(self, stage: str, error: str) -> bool:
        """Whether that stage was resumed after it failed so, and came to no result since.

        A resume drops the records beyond its checkpoint, among them that of the failure; an incident's folder stays.
        """
        if self.history.kind != stage or self.history.last_stage is not None or not self._trained_until(stage):
            return False
        return "stage" in self.history.kinds or any(story.headline in error for story in self.incidents)

    def _trained_until(self, stage: str) -> int:
        """Last training step of that stage; 0 where the records are another's."""
        return max(self.history.steps(), default=0) if self.history.kind == stage else 0

    @property
    def resumed(self) -> list[Session]:
        """The sessions that trained it on."""
        return resumed_sessions(self.history.headers, self.history.kind)

    @property
    def findings(self) -> list[Mapping[str, Any]]:
        """What the health rules object to at the end of the records."""
        return [finding.to_json() for finding in examine(self.history)]

    @property
    def reported(self) -> list[Mapping[str, Any]]:
        """What they reported while it trained, in the order of the records."""
        found: list[Mapping[str, Any]] = []
        for record in self.history.records("health"):
            reported = record.get("findings")
            for finding in reported if isinstance(reported, list) else []:
                if isinstance(finding, Mapping):
                    found.append({"step": record["step"], **finding})
        return found


def _history(file: Path, problems: list[str]) -> History:
    """As far as it can be read."""
    if not file.is_file():
        return History([])
    return History.read(file, on_damage=lambda error: problems.append(f"{error}; what follows that line is not shown"))


def _plots(history: History, problems: list[str]) -> tuple[tuple[Plot, ...], tuple[Chart, ...]]:
    """What is drawn, and the task's charts."""
    try:
        return tuple(plots_of(history)), charts_in(history.header) or ()
    except ValueError as error:
        problems.append(f"{error}; its evaluations are drawn by the names of their numbers")
        return tuple(plots(history.kind, None, judged_keys(history))), ()


def _incident_folders(path: Path) -> list[Path]:
    """The newest first, damaged ones too."""

    def age(folder: Path) -> tuple[int, str]:
        verdict = folder / "verdict.json"
        return (verdict if verdict.is_file() else folder).stat().st_mtime_ns, folder.name

    found = paths_in(path / "incidents", "step-*", inside=path)
    return sorted((folder for folder in found if folder.is_dir()), key=age, reverse=True)


def _story(folder: Path, recorded: Mapping[str, Any] | None, run: Path) -> IncidentStory:
    if is_inside(folder, run):
        return IncidentStory.read(folder, recorded)
    return IncidentStory(folder, read_verdict(recorded), (f"{folder}: a link that leads out of {run}; it is not read",))


def _step_of(folder: Path) -> int:
    number = folder.name.split("-")[1]
    return int(number) if number.isdecimal() else -1


def _json_object(file: Path, problems: list[str]) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = read_json(file, inside=file.parent)
    except (OSError, ValueError) as error:
        problems.append(f"{file}: cannot be read ({_why(error)}); it is left out")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{file}: not a JSON object; it is left out")
        return {}
    return decode(content)


def _stages(file: Path, problems: list[str]) -> dict[str, Mapping[str, Any]]:
    stages = _json_object(file, problems)
    bad = [name for name, entry in stages.items() if not isinstance(entry, Mapping)]
    problems.extend(f"{file}: {name} is no object; it is left out" for name in bad)
    return {name: entry for name, entry in stages.items() if name not in bad}


def _why(error: OSError | ValueError) -> str:
    return reason_of(error) if isinstance(error, OSError) else type(error).__name__


def _text(file: Path, problems: list[str]) -> str:
    if not file.exists():
        return ""
    try:
        return read_text(file, inside=file.parent)
    except (OSError, ValueError) as error:
        problems.append(f"{file}: cannot be read ({_why(error)}); it is left out")
        return ""


def _summary(result: Mapping[str, Any]) -> Mapping[str, Any]:
    summary = result.get("summary")
    return summary if isinstance(summary, Mapping) else {}
