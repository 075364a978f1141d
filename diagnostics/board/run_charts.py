"""Charts of a run's own numbers: each is one card, `00 run/Loss`, whose lines are sub-runs, since TensorBoard gives a
colour to a run, not to a tag."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

MAX_SUB_RUNS = 64  # each is an event file; what comes later shares the run's own
_MAX_LETTERS = 60  # of a line's name


@dataclass(frozen=True)
class ChartLine:
    """One line of a chart."""

    label: str
    """The name of its sub-run."""
    kind: str
    """Of the records that it is drawn of."""
    key: str
    """Of a record: `loss`; `copy.clip` of the dictionary `copy`; `loss_by_t.*` for all numbers of a dictionary;
    `loss_t*` for all keys that begin so. Each of those is a line of its own, with the rest of the key in its label."""


@dataclass(frozen=True)
class RunChart:
    """Lines that share their axes."""

    group: str
    """The part of the tag that TensorBoard groups by: `00 run`. It sorts by it, and blocks begin with 01."""
    title: str
    lines: tuple[ChartLine, ...]

    @property
    def tag(self) -> str:
        """The same in every sub-run."""
        # The Custom Scalars page takes what stands in parentheses for a run.
        plain = self.title.replace("/", " of ").replace(" (", ", ").replace("(", "").replace(")", "")
        return f"{self.group}/{plain}"

    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """(sub-run, number) of what a record has of it; the sub-run is "" where the chart is of one line alone."""
        kind = record.get("kind", "train")
        for line in self.lines:
            if line.kind == kind:
                for rest, value in _values(record, line.key):
                    yield self._sub_run(f"{line.label}{rest}", line), value

    def _sub_run(self, label: str, line: ChartLine) -> str:
        if len(self.lines) == 1 and not line.key.endswith("*"):
            return ""
        title = re.sub(r"\([^)]*\)", "", self.title)  # what explains an axis would fill the list of runs
        return f"{_folder(title)}/{_folder(label)}"


def _values(record: Mapping[str, Any], key: str) -> Iterator[tuple[str, float]]:
    """(what the key leaves open, number)."""
    if not key.endswith("*"):
        outer, _, inner = key.partition(".")  # as `History.curve` reads it
        value = record.get(key, record.get(outer))
        value = value.get(inner) if isinstance(value, Mapping) else value
        if is_number(value):
            yield "", value
        return
    outer, dot, start = key[:-1].partition(".")
    inside = record.get(outer) if dot else record
    for name, value in inside.items() if isinstance(inside, Mapping) else ():
        if str(name).startswith(start if dot else outer) and is_number(value):
            yield str(name).removeprefix(start if dot else outer), value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a record's value can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _folder(name: str) -> str:
    """A name of a file out of words that may be anybody's: no separator, no dot in front."""
    plain = re.sub(r"[^\w .,()+-]", "_", name)[:_MAX_LETTERS].strip(" .")
    plain = re.sub(" +", " ", plain)
    return plain or "line"


RUN_CHARTS: tuple[RunChart, ...] = (
    RunChart("00 run", "loss", (ChartLine("training", "train", "loss"), ChartLine("held out", "validation", "loss"))),
    RunChart("00 run", "loss by t", (ChartLine("t ", "train", "loss_by_t.*"),)),
    RunChart(
        "00 run",
        "gradient norm",
        (
            ChartLine("before clipping", "train", "grad_norm"),
            ChartLine("after clipping", "train", "grad_norm_clipped"),
        ),
    ),
    RunChart("00 validation", "held-out loss by t", (ChartLine("t ", "validation", "loss_t*"),)),
    RunChart("00 validation", "answer to each condition", (ChartLine("", "validation", "response_*"),)),
)
"""For records of the kinds `train` and `validation`."""
