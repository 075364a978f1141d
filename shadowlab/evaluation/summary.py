"""From the lines of all samples to evaluation.json, in one pass.

Legend: N samples of a track.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadowlab.charts import Metric
from shadowlab.evaluation.lines import Line
from shadowlab.evaluation.one_sample import means
from shadowlab.evaluation.statistics import REPLICATES, Resampling, Summary, TrackStatistics
from shadowlab.evaluation.subject import TRAINED, Subject

_PICKED = 2  # best and worst samples of a track

Control = dict[str, dict[str, list[float]]]
"""Method -> measure -> values of the objects."""


@dataclass(frozen=True)
class Picked:
    """A sample that is shown."""

    number: int
    """In the data set."""
    track: str
    word: str
    """`best 1`, `median`, `worst 2`."""
    value: float
    """Of the metric and the method it was picked by."""


@dataclass(frozen=True)
class Track:
    """Samples that are judged apart."""

    name: str
    num_samples: int
    summaries: Mapping[str, Mapping[str, Summary]]
    """Method -> metric -> summary."""
    picked: tuple[Picked, ...]

    def to_json(self) -> dict[str, Any]:
        methods = {
            method: {metric: one.to_json() for metric, one in of_metric.items()}
            for method, of_metric in self.summaries.items()
        }
        return {"num_samples": self.num_samples, "methods": methods}


@dataclass(frozen=True)
class Summaries:
    """Everything that is said of all samples."""

    tracks: tuple[Track, ...]
    control: dict[str, dict[str, dict[str, Any]]]
    """Method -> measure -> mean, low, high, num_samples."""


def summarised(subject: Subject, flags: np.ndarray, lines: Iterable[Line]) -> Summaries:
    """One pass over the lines, which are in the order of the data set. flags: (N,) bool, trained on."""
    names = _names(subject, flags)
    methods = {method.name: method.num_seeds for method in subject.methods}
    metrics = [metric.name for metric in subject.evaluation.metrics]
    ranking = next(m for m in subject.evaluation.metrics if m.name == subject.evaluation.ranking)
    judged = subject.ranked.name
    statistics = {name: TrackStatistics(name, count, methods, metrics) for name, count in names.items()}
    ranked = {name: (array("q"), array("d")) for name in names}
    control: Control = {name: {} for name in methods}
    for line in lines:
        name = TRAINED.format(track=line["track"]) if line["trained_on"] else line["track"]
        statistics[name].add(line["methods"])
        numbers, values = ranked[name]
        numbers.append(line["number"])
        values.append(means({judged: line["methods"][judged]})[judged][ranking.name])
        for method, measured in line.get("control", {}).items():
            for measure, value in measured.items():
                control[method].setdefault(measure, []).append(value)
    tracks = [
        Track(name, count, statistics[name].summaries(), _picked(name, *ranked[name], ranking))
        for name, count in names.items()
    ]
    return Summaries(tuple(tracks), _of_control(control))


def _names(subject: Subject, flags: np.ndarray) -> dict[str, int]:
    """Tracks that have a sample -> how many; those of trained objects after each."""
    of, found = np.array(subject.tracks.of), {}
    for number, track in enumerate(subject.tracks.names):
        there = of == number
        for name, count in ((track, there & ~flags), (TRAINED.format(track=track), there & flags)):
            if count.any():
                found[name] = int(count.sum())
    return found


def _picked(track: str, numbers: "array[int]", values: "array[float]", ranking: Metric) -> tuple[Picked, ...]:
    """Worst, median and best, none twice; equal ones in the order of the data set."""
    sign = 1.0 if ranking.higher_is_better else -1.0
    order = np.argsort(sign * np.array(values), kind="stable").tolist()
    most = min(_PICKED, max(1, len(order) // 2))
    places = {f"best {k + 1}": len(order) - 1 - k for k in range(most)}
    places["median"] = (len(order) - 1) // 2
    places |= {f"worst {k + 1}": k for k in range(most)}
    seen: set[int] = set()
    found = []
    for word, place in places.items():
        if place not in seen:
            seen.add(place)
            found.append(Picked(numbers[order[place]], track, word, values[order[place]]))
    return tuple(found)


def _of_control(control: Control) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        method: {measure: _of_objects(measure, values) for measure, values in measured.items()}
        for method, measured in control.items()
        if measured
    }


def _of_objects(measure: str, values: list[float]) -> dict[str, Any]:
    """Mean over objects with its bootstrap interval; none of one object."""
    numbers = np.array(values)
    found: dict[str, Any] = {"mean": float(numbers.mean()), "low": None, "high": None, "num_samples": len(values)}
    if len(values) > 1:
        resampling, sums = Resampling(len(values), f"control {measure}"), np.zeros(REPLICATES)
        for value in values:
            sums += value * resampling.draw()
        found["low"], found["high"] = np.quantile(sums / len(values), (0.025, 0.975)).tolist()
    return found
