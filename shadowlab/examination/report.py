"""From what was found of single samples to what is said of the data set."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shadowlab.data import Examination, Judgement, Judging, Problem, near_duplicates, one_line
from shadowlab.examination.parts import Part

_NUM_SHOWN = 3  # of lines that are alike


@dataclass(frozen=True)
class CheckReport:
    """What a reading found."""

    num_samples: int
    """Samples that the metadata list."""
    num_objects: int
    """Distinct objects among them."""
    problems: list[Problem]
    """What makes training refuse the data set; `str()` of each is one line."""
    notices: list[str]
    """What a person should know, one line each."""
    num_examined: int = field(default=0, kw_only=True)
    """Samples whose pictures were read: all of them, but where only some were drawn."""
    errors: list[str] = field(default_factory=list, kw_only=True)
    """What all samples together show, and training would learn something wrong from; one line each."""
    warnings: list[str] = field(default_factory=list, kw_only=True)
    """What all samples together show, and may be meant."""
    said: list[str] = field(default_factory=list, kw_only=True)
    """What was judged of all samples together, and what could not be."""
    fingerprint: str = field(default="", kw_only=True)
    """Of names, metadata and file sizes, by which the result is known again."""
    picture: str = field(default="", kw_only=True)
    """File of the samples that a person should look at; empty where there is none."""

    @property
    def passed(self) -> bool:
        return not self.problems and not self.errors


def merged(
    examination: Examination,
    parts: Iterable[tuple[Sequence[int], Part]],
    num_examined: int,
    keep: Callable[[np.ndarray], str] = lambda picture: "",
) -> CheckReport:
    """One report of all parts, in the order of their samples; the same however they came about.

    Args:
        parts: numbers of samples, and what was found of them.
        num_examined: how many samples they have together.
        keep: writes a picture (H, W, 3) uint8 and says where it lies.
    """
    problems, notices = list(examination.problems), list(examination.notices)
    marked: dict[str, list[str]] = {mark: [] for mark in examination.marks}
    num_read, shown, judged = 0, list[int](), list[int]()
    numbers: list[np.ndarray] = []  # of a quarter of a million samples: 18 MB
    with tempfile.TemporaryFile() as file:  # 330 MB of a quarter of a million samples: not in memory
        width = 0
        for samples, part in parts:
            for place, wrong, odd in part.said:
                name = examination.ids[samples[place]]
                problems += [Problem(name, message) for message in wrong]
                notices += [f"{one_line(name)}: {message}" for message in odd]
            for place in np.flatnonzero(part.was_read).tolist():
                num_read += 1
                for mark, is_here in zip(examination.marks, part.marks[place].tolist(), strict=True):
                    if is_here:
                        marked[mark].append(examination.ids[samples[place]])
            if part.thumbnails.shape[1]:
                width = part.thumbnails.shape[1]
                shown += [samples[place] for place in np.flatnonzero(part.was_read).tolist()]
                file.write(part.thumbnails[part.was_read].tobytes())
            if part.numbers.shape[1]:
                judged += [samples[place] for place in np.flatnonzero(part.was_read).tolist()]
                numbers.append(part.numbers[part.was_read])
        file.flush()
        judgement = _judged(examination, judged, numbers)
        marked |= {mark: [] for mark in judgement.marks}
        notices += examination.together(num_read, marked)
        if shown:
            rows = np.memmap(file, np.uint8, "r", shape=(len(shown), width))
            notices += [
                f"{one_line(first)} and {one_line(second)}: nearly the same pictures under two ids"
                for first, second in near_duplicates([examination.ids[sample] for sample in shown], rows)
            ]
            del rows
    return CheckReport(
        len(examination.ids),
        len(set(examination.object_ids)),
        problems,
        notices,
        num_examined=num_examined,
        errors=[fault.text for fault in judgement.faults if fault.is_error],
        warnings=[fault.text for fault in judgement.faults if not fault.is_error],
        said=list(judgement.said),
        fingerprint=examination.fingerprint(),
        picture="" if judgement.picture is None else keep(judgement.picture),
    )


def _judged(examination: Examination, samples: Sequence[int], numbers: Sequence[np.ndarray]) -> Judgement:
    if samples and isinstance(examination, Judging):
        return examination.judge(samples, np.concatenate(numbers))
    return Judgement()


def listing(lines: Sequence[str]) -> list[str]:
    """`NAME: what` lines for a person: of those that differ in names and numbers alone three, then their count."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        name, _, what = line.partition(": ")
        kinds[re.sub(r"\d+", "#", what.replace(name, "*"))].append(line)
    listed = {line for alike in kinds.values() for line in alike[:_NUM_SHOWN]}
    rest = [(len(alike) - _NUM_SHOWN, alike[0]) for alike in kinds.values() if len(alike) > _NUM_SHOWN]
    return [line for line in lines if line in listed] + [f"and {count} more like: {line}" for count, line in rest]
