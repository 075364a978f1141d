"""`--compare A B`: two evaluations of the same samples, paired sample by sample."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import read_json, reason_of, replace_text
from shadowlab.charts import Metric
from shadowlab.console import Reporter
from shadowlab.distributed import Processes
from shadowlab.errors import UserError
from shadowlab.evaluation.judging import OPTIONS, RESULT, evaluate
from shadowlab.evaluation.lines import Line, read_per_image
from shadowlab.evaluation.one_sample import means
from shadowlab.evaluation.statistics import SignTest, TrackStatistics
from shadowlab.evaluation.subject import TRAINED, Question
from shadowlab.settings import load_config
from shadowlab.tasks import open_task

FILE = "comparison.json"
_NOTES = (
    "a win is a sample on which the first is better, by the mean over its seeds; p: sign test, exact, two sides",
    "difference: the first less the second, mean over samples, with its 95 % bootstrap interval",
    "of many tracks and metrics some p are small by chance: choose one of each before you look",
)


@dataclass(frozen=True)
class Finished:
    """An evaluation that is finished, in its folder."""

    folder: Path
    name: str
    """For people."""
    options: Mapping[str, Any]
    metrics: tuple[str, ...]
    """Names, in the order of the files."""

    @property
    def own(self) -> list[str]:
        """Methods that it is about."""
        return list(self.options["methods"][: self.options["judged"]])

    @classmethod
    def at(cls, folder: Path) -> "Finished | None":
        """None where the folder holds no finished evaluation. Raises UserError where it cannot be read."""
        if not (folder / RESULT).is_file() or not (folder / OPTIONS).is_file():
            return None
        options, document = (_object(folder / name, folder) for name in (OPTIONS, RESULT))
        methods, judged = options.get("methods"), options.get("judged")
        names = [name for name in methods if isinstance(name, str)] if isinstance(methods, list) else []
        if names != methods or not isinstance(judged, int) or not 0 < judged <= len(names):
            raise UserError(f"{folder / OPTIONS}: no options of an evaluation; run the evaluation again")
        sound = re.fullmatch("[0-9a-f]{64}", str(options.get("data"))) and isinstance(options.get("image size"), int)
        if not sound or not isinstance(options.get("task"), str):
            raise UserError(f"{folder / OPTIONS}: no options of an evaluation; run the evaluation again")
        first = next(read_per_image(folder), {})
        found = _means(first, folder) if first else {}
        metrics = tuple(next(iter(found.values()), {}))
        if not metrics or not isinstance(document.get("tracks"), dict):
            raise UserError(f"{folder}: no sample in it; run the evaluation again")
        return cls(folder, str(folder), options, metrics)


@dataclass(frozen=True)
class Compared:
    """Two evaluations, held against each other."""

    document: dict[str, Any]
    """As comparison.json has it."""
    metrics: tuple[Metric, ...]
    file: Path


def compare_models(
    pair: tuple[str, str], question: Question, processes: Processes, reporter: Reporter, *, out: Path | None = None
) -> Compared | None:
    """Judge both, where a finished evaluation is not given, and hold them against each other; every process calls it.

    Args:
        out: folder of comparison.json, and of the evaluations that are made for it, in `first/` and `second/`; None:
            below `evaluations`.

    Returns:
        What came of it, on the first process; None on the others.

    Raises:
        UserError: as `evaluate`, or the two are not of the same samples.
    """
    ends: list[Finished] = []
    for place, folder in zip(pair, ("first", "second"), strict=True):
        with processes.together():
            there = Finished.at(Path(place)) if processes.is_main else None
        there = processes.share(there)
        if there is None:
            done = evaluate(question.of(place), processes, reporter, out=None if out is None else out / folder)
            with processes.together():
                if done is not None:
                    there = Finished.at(done.folder)
            there = processes.share(there)
        assert there is not None
        ends.append(there)
    compared = None
    with processes.together():
        if processes.is_main:
            first, second = ends
            target = out or Path("evaluations") / f"{first.folder.name}-against-{second.folder.name}"[:200]
            compared = compare(first, second, target / FILE)
    return compared


def compare(first: Finished, second: Finished, file: Path) -> Compared:
    """Write `file`. Raises UserError where the two are not of the same samples, or it cannot be written."""
    for key, words in (("task", "task"), ("data", "data set"), ("image size", "picture size")):
        if first.options[key] != second.options[key]:
            raise UserError(
                f"{first.folder} and {second.folder} are not of the same {words}; judge both with the same --data and "
                "--image-size"
            )
    if first.metrics != second.metrics:
        raise UserError(f"{first.folder} and {second.folder} have different metrics; run the older one again")
    pairs = _pairs(first, second)
    metrics = _metrics(str(first.options["task"]), first.metrics)
    document = {
        "data": first.options["data"],
        "first": first.name,
        "second": second.name,
        "tracks": _tracks(first, second, pairs, metrics),
        "notes": list(_NOTES),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({reason_of(error)}); give another --out") from error
    return Compared(document, metrics, file)


def _pairs(first: Finished, second: Finished) -> dict[str, tuple[str, str]]:
    """Name of a pair -> the methods: those of one name, or, where one end has a single method, that with all others."""
    same = [name for name in first.own if name in second.own]
    if same:
        return {name: (name, name) for name in same}
    if len(first.own) > 1 and len(second.own) > 1:
        raise UserError(
            f"{first.folder} has {', '.join(first.own)}; {second.folder} has {', '.join(second.own)}: judge both in "
            "the same numbers of --steps"
        )
    return {f"{a} against {b}": (a, b) for a in first.own for b in second.own}


def _tracks(
    first: Finished, second: Finished, pairs: Mapping[str, tuple[str, str]], metrics: Sequence[Metric]
) -> dict[str, Any]:
    names = [metric.name for metric in metrics]
    sizes = Counter(track for track, _, _ in _paired(first, second))
    statistics = {track: TrackStatistics(track, n, dict.fromkeys(pairs, 0), names) for track, n in sizes.items()}
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for track, one, other in _paired(first, second):
        differences: dict[str, dict[str, list[float]]] = {}
        for pair, (a, b) in pairs.items():
            try:
                differences[pair] = {name: [one[a][name] - other[b][name]] for name in names}
            except KeyError as error:
                raise UserError(f"{first.folder}, {second.folder}: a sample without {error}; run them again") from error
            for metric in metrics:
                gain = differences[pair][metric.name][0] * (1 if metric.higher_is_better else -1)
                counts[track, pair, metric.name][0 if gain > 0 else 1 if gain < 0 else 2] += 1
        statistics[track].add(differences)
    found: dict[str, Any] = {}
    for track, number in sizes.items():
        summaries = statistics[track].summaries()
        rows = {
            pair: {
                name: {
                    **SignTest.of(*counts[track, pair, name]).to_json(),
                    "difference": summaries[pair][name].mean,
                    "low": summaries[pair][name].low,
                    "high": summaries[pair][name].high,
                }
                for name in names
            }
            for pair in pairs
        }
        found[track] = {"num_samples": number, "pairs": rows}
    return found


Means = dict[str, dict[str, float]]


def _paired(first: Finished, second: Finished) -> Iterator[tuple[str, Means, Means]]:
    """Track, and what both say of a sample, in the order of the data set."""
    try:
        for one, other in zip(read_per_image(first.folder), read_per_image(second.folder), strict=True):
            if one.get("sample") != other.get("sample"):
                raise ValueError
            track = str(one.get("track"))
            if one.get("trained_on") or other.get("trained_on"):
                track = TRAINED.format(track=track)
            yield track, _means(one, first.folder), _means(other, second.folder)
    except ValueError:
        raise UserError(f"{first.folder} and {second.folder} have other samples; run both again") from None


def _means(line: Line, folder: Path) -> Means:
    try:
        return means(line["methods"])
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{folder}: a line of per_image.jsonl is damaged; run the evaluation again") from error


def _metrics(task: str, names: Sequence[str]) -> tuple[Metric, ...]:
    """Of the task: which direction is better."""
    evaluation = open_task(load_config(assignments=[f"task={task}"])).evaluation
    known = {metric.name: metric for metric in evaluation.metrics}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{unknown[0]} is no metric of the task {task}; run the evaluations again")
    return tuple(known[name] for name in names)


def _object(file: Path, folder: Path) -> dict[str, Any]:
    try:
        found = read_json(file, inside=folder)
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{file}: cannot be read ({reason}); run the evaluation again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: not what an evaluation writes; run the evaluation again")
    return found
