"""One sample, judged: the line that is kept of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadowlab.evaluation.lines import Line
from shadowlab.evaluation.methods import Method
from shadowlab.evaluation.subject import Subject
from shadowlab.tasks import TaskBatch


def judge_sample(subject: Subject, number: int, *, is_trained: bool | None, has_control: bool) -> Line:
    """Every method on one sample, with all seeds; a function of the sample alone.

    Args:
        is_trained: whether its object is in the training split; None: not known.

    Raises:
        UserError: the sample cannot be read; names it.
        StageFailedError: what a model makes of it is not finite; names it.
    """
    batch, data, tracks = subject.batch(number), subject.data, subject.tracks
    line: Line = {
        "number": number,
        "sample": data.ids[number],
        "object": data.object_ids[number],
        "track": tracks.names[tracks.of[number]],
        "trained_on": is_trained,
        "conditions": subject.evaluation.caption(batch),
        "methods": {method.name: _values(subject, method, batch) for method in subject.methods},
    }
    if has_control:
        line["control"] = {method.name: _control(subject, method, batch) for method in subject.methods if method.obeys}
    return line


def control_samples(object_ids: Sequence[str], most: int) -> frozenset[int]:
    """Numbers of the samples of which control is measured: the first of each of `most` objects, evenly over all."""
    first: dict[str, int] = {}
    for i, name in enumerate(object_ids):
        first.setdefault(name, i)
    found = list(first.values())
    count = min(len(found), most)
    return frozenset(found[i * len(found) // count] for i in range(count))


def _values(subject: Subject, method: Method, batch: TaskBatch) -> dict[str, list[float]]:
    """Metric -> a value for each seed, or one."""
    metrics = [metric.name for metric in subject.evaluation.metrics]
    found: dict[str, list[float]] = {name: [] for name in metrics}
    for pictures in method.pictures(batch):
        judged = subject.evaluation.judge(pictures, batch.select(torch.zeros(len(pictures), dtype=torch.int64)))
        for name in metrics:
            found[name] += [shortest(value) for value in judged[name]]
    return found


def _control(subject: Subject, method: Method, batch: TaskBatch) -> dict[str, float]:
    measured = subject.evaluation.control(batch, method.first)
    return {name: shortest(value) for name, value in measured.items() if math.isfinite(value)}


def shortest(value: float | Tensor) -> float:
    """The float32 nearest to a number, with as few digits as tell it from the others."""
    return float(str(np.float32(float(value))))


def means(values: Any) -> dict[str, dict[str, float]]:
    """`methods` of a line -> method -> metric -> mean over seeds."""
    return {
        method: {metric: math.fsum(numbers) / len(numbers) for metric, numbers in of_metric.items()}
        for method, of_metric in values.items()
    }
