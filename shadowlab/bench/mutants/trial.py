"""One mutant through the stages, until one of them stops it."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shadowlab.bench.mutants.commands import Answer, WarmProcess
from shadowlab.bench.mutants.copied_tree import CopiedTree
from shadowlab.bench.mutants.mutant import STAGES, CodeMutant, DataMutant, Stage
from shadowlab.bench.mutants.places import blamed, failed_checks, is_in_file, is_right, names_the_thing

RENDERS = Path("shadowlab/assets/renders")  # of a copied tree, as the data set `embedded`

_RUN, _PROVEN, _TRAINED = "checked", "memorised", "trained"
_SMALL = ("--set", "data.image_size=64", "--set", "diagnostics.histograms_every=0")
_OVERFIT = (
    *("--samples", "9", "--max-steps", "300", "--set", "overfit.batch_size=9", "--set", "overfit.evaluate_every=50"),
    *("--set", "overfit.min_r2=0.85", "--set", "task_options.min_soft_iou=0.6"),
)
_TRAIN = (
    *("--set", "train.batch_size=4", "--set", "diagnostics.statistics_every=4", "--set", "train.validate_every=8"),
    *("--set", "checkpoint.every_steps=8", "--set", "validation.num_samples=4", "--set", "validation.num_noises=1"),
    *("--set", "optimizer.warmup_steps=4", "--set", "task_options.light_sweep=false"),
)
_STEPS, _RESUMED_STEPS = "24", "36"
_MOST_SAID = 2000  # characters that are kept of what a stage says


@dataclass(frozen=True)
class StageOutcome:
    """What one stage did with one mutant."""

    stage: Stage
    stopped: bool
    """It ended with another exit code than 0, or `health` gave an alarm."""
    said: str
    """What it failed with, or warned of; empty where it was silent."""
    right_place: bool
    """File and function, or the thing that is wrong by the name that users know it by."""
    right_file: bool
    """The file at least."""
    blames: tuple[str, ...]
    """The first place that it names: `file.py, function`."""
    seconds: float
    timed_out: bool = False


@dataclass(frozen=True)
class MutantResult:
    """What became of one mutant."""

    name: str
    family: str
    place: str
    outcomes: tuple[StageOutcome, ...]

    @property
    def stopped_by(self) -> StageOutcome | None:
        return next((one for one in self.outcomes if one.stopped), None)

    @property
    def right_place(self) -> bool:
        return self.stopped_by is not None and self.stopped_by.right_place

    def to_json(self) -> dict[str, Any]:
        stopped = self.stopped_by
        return asdict(self) | {"stopped_by": stopped.stage if stopped else None, "right_place": self.right_place}


class Bench:
    """A copied tree and a warm process; one mutant at a time. Closed by `close`."""

    def __init__(self, root: Path, stages: Sequence[Stage], seconds: float) -> None:
        """Args: root: an empty folder for the copy and all runs. seconds: of one command, at most."""
        self._root, self._stages, self._seconds = root, tuple(stages), seconds
        self.tree = CopiedTree(root / "tree")
        self._process = WarmProcess()

    def close(self) -> None:
        self._process.close()

    def unmutated(self) -> MutantResult:
        """The copy as it is through all stages, whatever they say."""
        folder = self._folder()
        outcomes = [self._code_stage(stage, None, folder) for stage in STAGES if stage in self._stages]
        return MutantResult("unmutated", "", "", tuple(outcomes))

    def of_code(self, mutant: CodeMutant, family: str) -> MutantResult:
        """Raises UserError where the code is not what the mutant was written for."""
        folder, outcomes = self._folder(), []
        with self.tree.with_fault(mutant):
            for stage in STAGES:
                if stage in self._stages and stage in mutant.stages:
                    outcomes.append(self._code_stage(stage, mutant, folder))
                    if outcomes[-1].stopped:
                        break
        return MutantResult(mutant.name, family, mutant.place, tuple(outcomes))

    def of_data(self, mutant: DataMutant) -> MutantResult:
        """Through `data check` alone."""
        folder = self._folder()
        mutant.make(self.tree.root / RENDERS, folder / "data")
        answer = self._run(("data", "check", str(folder / "data"), "--json"), folder)
        lines = [*_strings(answer.document), *answer.errors.splitlines()]
        named = next((text for text in lines if re.search(mutant.said, text, re.IGNORECASE)), "")
        stopped = answer.code != 0 or (bool(named) and not mutant.is_error)
        said = named or (_error(answer) if stopped else "")
        outcome = StageOutcome(
            "data check", stopped, said[:_MOST_SAID], bool(named), bool(named), (), answer.seconds, answer.timed_out
        )
        return MutantResult(mutant.name, "data", "", (outcome,))

    def _folder(self) -> Path:
        folder = self._root / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _code_stage(self, stage: Stage, mutant: CodeMutant | None, folder: Path) -> StageOutcome:
        options = () if mutant is None else mutant.options
        if stage == "check-forward":
            answer = self._run((stage, "--json", "--run", _RUN, *options), folder)
            return _judged(stage, answer, list(failed_checks(answer.document)) or [_error(answer)], mutant)
        if stage == "data check":
            answer = self._run(("data", "check", "embedded", "--json"), folder)
            return _judged(stage, answer, [_error(answer)], mutant)
        if stage == "overfit":
            answer = self._run((stage, "--json", "--run", _PROVEN, *_SMALL, *_OVERFIT, *options), folder)
            return _judged(stage, answer, [_error(answer)], mutant)
        return self._trained(mutant, folder, options)

    def _trained(self, mutant: CodeMutant | None, folder: Path, options: Sequence[str]) -> StageOutcome:
        """A short run, its resume, and health of both."""
        more = () if mutant is None else mutant.train_options
        run = ("train", "--json", "--run", _TRAINED, "--skip-stages")
        commands: list[Callable[[], Answer]] = [
            lambda: self._run((*run, *_SMALL, *_TRAIN, "--max-steps", _STEPS, *options, *more), folder),
            lambda: self._run((*run, "--resume", "--max-steps", _RESUMED_STEPS), folder),
        ]
        seconds = 0.0
        for command in commands:
            answer = command()
            seconds += answer.seconds
            if answer.code != 0:
                return _judged("train", answer, [_error(answer)], mutant, seconds)
        answer = self._run(("health", _TRAINED, "--json"), folder)
        findings = [one for one in (answer.document or {}).get("findings", []) if isinstance(one, dict)]
        alarms = [" ".join(map(str, one.values())) for one in findings if one.get("severity") == "alarm"]
        others = [" ".join(map(str, one.values())) for one in findings if one.get("severity") != "alarm"]
        return _judged("train", answer, alarms or others or [""], mutant, seconds + answer.seconds)

    def _run(self, words: Sequence[str], folder: Path) -> Answer:
        environment = {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        return self._process.run(self.tree.root, words, folder, seconds=self._seconds, environment=environment)


def _judged(
    stage: Stage, answer: Answer, said: Sequence[str], mutant: CodeMutant | None, seconds: float | None = None
) -> StageOutcome:
    """said: what the stage failed with, one text for each of its findings."""
    stopped = answer.code != 0
    places = blamed(said)
    text = "\n".join(said) if stopped or stage == "train" else ""
    right = in_file = False
    if mutant is not None and stopped:
        in_place = any(is_right(place, mutant) for place in places)
        right = in_place or (not places and names_the_thing(text, mutant))
        in_file = right or any(is_in_file(place, mutant) for place in places)
    shown = tuple(f"{file}, {function}" for file, function in places[:3])
    took = answer.seconds if seconds is None else seconds
    return StageOutcome(stage, stopped, text[:_MOST_SAID], right, in_file, shown, took, answer.timed_out)


def _error(answer: Answer) -> str:
    """What a command failed with."""
    if answer.timed_out:
        return "it took too long and was ended"
    if answer.document is not None and isinstance(answer.document.get("error"), str):
        return str(answer.document["error"])
    lines = [line for line in answer.errors.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error")]
    return "\n".join(own or lines[-12:])


def _strings(value: Any) -> list[str]:
    """All texts of a JSON document, each finding in one piece."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        inner = [text for one in value.values() for text in _strings(one)]
        return (
            [*inner, " ".join(inner)]
            if all(isinstance(one, str | int | float | None) for one in value.values())
            else inner
        )
    if isinstance(value, list):
        return [text for one in value for text in _strings(one)]
    return []
