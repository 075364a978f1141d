"""`shadowlab evaluate`: every sample judged once, by one of several processes, and none again on resuming.

    OUT/options.json      what decides the numbers; another evaluation is refused
    OUT/per_image.jsonl   a line a sample (until the end part-*.jsonl, a file a process)
    OUT/evaluation.json   OUT/evaluation.html   OUT/pictures/

Legend: N samples of the data set.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diagnostics.files import hold, read_json, reason_of, replace_text
from shadowlab.console import Reporter
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import UserError
from shadowlab.evaluation.document import document_of, write_page
from shadowlab.evaluation.gallery import Shown, draw_picked
from shadowlab.evaluation.lines import Lines, Wanted
from shadowlab.evaluation.one_sample import control_samples, judge_sample
from shadowlab.evaluation.subject import Question, Subject, default_out, ignored_options, open_subject
from shadowlab.evaluation.summary import Picked, summarised
from shadowlab.evaluation.trained_on import TrainedOn
from shadowlab.plain_text import counted

OPTIONS = "options.json"
RESULT = "evaluation.json"
PAGE = "evaluation.html"
_LOCK = ".lock"
_FORMAT = 1  # one more whenever the same options come to give other numbers
_OPENING_SECONDS = 3600.0  # the other processes wait this long while one reads names and weights


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An evaluation that is finished."""

    folder: Path
    name: str
    """What was judged, for people."""
    document: dict[str, Any]
    """As evaluation.json has it."""
    subject: Subject


def evaluate(
    question: Question, processes: Processes, reporter: Reporter, *, out: Path | None = None
) -> Evaluated | None:
    """Judge what `question` names; every process calls it.

    The files are the same, bit for bit, whatever the number of processes and however often it was stopped.

    Args:
        out: folder of the results, and of what is judged so far; None: `evaluations/MODEL-on-DATA`.

    Returns:
        What came of it, on the first process; None on the others.

    Raises:
        UserError: there is no such model or data set, a sample cannot be read, a track is missing, or the folder holds
            another evaluation.
        StageFailedError: what a model makes of a sample is not finite.
    """
    processes.at("opening model and data", patience_seconds=_OPENING_SECONDS, silence_seconds=_OPENING_SECONDS)
    with processes.together():
        subject = open_subject(question, processes)
    _announce(subject, question, reporter)
    folder = default_out(subject) if out is None else out
    with _repeatable(), _locked(processes, folder):
        with processes.together():
            found = subject.trained() if processes.is_main else None
        trained = processes.share(found)
        with processes.together():
            if processes.is_main:
                _require_same(folder, subject, trained)
        lines = _judge(subject, folder, trained, processes, reporter)
        with processes.together():
            summaries = summarised(subject, trained.flags, lines) if processes.is_main else None
        picked = processes.share([one for track in summaries.tracks for one in track.picked] if summaries else None)
        shown = _draw(subject, picked, folder, processes, reporter)
        evaluated = None
        with processes.together():
            if summaries is not None:
                document = document_of(subject, summaries, trained.note)
                _write(folder / RESULT, document)
                write_page(folder / PAGE, subject, document, summaries, shown)
                evaluated = Evaluated(folder, subject.name, document, subject)
    return evaluated


def _announce(subject: Subject, question: Question, reporter: Reporter) -> None:
    for text in (*ignored_options(question, subject), *subject.data.notices):
        reporter.warn(text)
    drawn = ""
    if subject.steps:
        drawn = f", {_and(subject.steps)} steps, {counted(subject.num_seeds, 'seed')}"
    reporter.say(
        f"evaluate: {subject.name}, on {counted(len(subject.data), 'sample')} of {subject.where} at "
        f"{subject.image_size} px{drawn}"
    )


def _judge(subject: Subject, folder: Path, trained: TrainedOn, processes: Processes, reporter: Reporter) -> Lines:
    """A line for each sample; merged into one file on the first process."""
    data = subject.data
    controlled = control_samples(data.object_ids, subject.control_objects)
    methods = {method.name: max(1, method.num_seeds) for method in subject.methods}
    metrics = tuple(metric.name for metric in subject.evaluation.metrics)
    lines = Lines(folder, Wanted(data.ids, methods, metrics, controlled.__contains__))
    left, call = None, 0
    with processes.together():
        if processes.is_main:
            left, call = np.flatnonzero(~lines.look()).tolist(), lines.next_call()
            if len(left) < len(data):
                reporter.say(f"resuming: {len(data) - len(left)} of {len(data)} samples are judged already")
    left, call = processes.share((left, call))
    writer = lines.writer(call, processes.rank)

    def work(numbers: Sequence[int]) -> Iterable[None]:
        for number in numbers:
            is_trained = bool(trained.flags[number]) if trained.is_known else None
            writer.write(judge_sample(subject, number, is_trained=is_trained, has_control=number in controlled))
            yield None

    try:
        if left:
            share_out(processes, left, work, reporter, noun="sample")
    finally:
        writer.close()
    with processes.together():
        if processes.is_main:
            missing = len(data) - int(lines.look().sum())
            if missing:
                raise UserError(
                    f"{missing} of {len(data)} samples are not in {folder}: on several machines give --out DIR, a "
                    "folder that all of them share"
                )
            lines.merge()
    return lines


def _draw(
    subject: Subject, picked: Sequence[Picked], folder: Path, processes: Processes, reporter: Reporter
) -> list[Shown]:
    """On the first process; none on the others."""

    def work(ones: Sequence[Picked]) -> Iterable[Shown]:
        for one in ones:
            yield draw_picked(subject, one, folder)

    return share_out(processes, picked, work, reporter, noun="picture", first_only=True)


def _require_same(folder: Path, subject: Subject, trained: TrainedOn) -> None:
    """Keep what decides the numbers; raise UserError where the folder holds an evaluation of something else."""
    objects = hashlib.sha256(trained.flags.tobytes()).hexdigest() if trained.flags.any() else None
    noted = objects if trained.is_known else "unknown"
    own = {"format": _FORMAT, "judged": subject.num_own, **subject.basis(), "trained objects": noted}
    file = folder / OPTIONS
    try:
        there = read_json(file, inside=folder)
    except FileNotFoundError:
        there = None
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{file}: cannot be read ({reason}); give another --out, or remove {folder}") from error
    if there is None:
        _write(file, own)
        return
    kept = there if isinstance(there, dict) else {}
    other = [key for key in own if kept.get(key) != own[key]]
    if other:
        said = f"{other[0]} {_brief(kept.get(other[0]))} there, {_brief(own[other[0]])} here"
        raise UserError(f"{folder} holds an evaluation of something else ({said}); give another --out, or remove it")


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:12]}..." if len(text) > 40 and " " not in text else text[:120]


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        replace_text(file, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({reason_of(error)}); give another --out") from error


def _and(numbers: Sequence[int]) -> str:
    texts = list(map(str, numbers))
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


@contextmanager
def _locked(processes: Processes, folder: Path) -> Iterator[None]:
    """The folder, made where there is none, which no other evaluation uses meanwhile."""
    lock = None
    with processes.together():
        if processes.is_main:
            lock = _lock(folder)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                (folder / _LOCK).unlink()
            os.close(lock)


def _lock(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / _LOCK)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason_of(error)}); give another --out") from error
    if lock is None:
        raise UserError(f"another evaluation is running in {folder}; wait for it, or give another --out")
    return lock


@contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN takes the same algorithm each time."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
