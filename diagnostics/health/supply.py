"""Rules of what a run lives on: its samples, its memory, its time."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from diagnostics.health.rule import Finding, number, rule
from diagnostics.records import Curve, History, TrainingStep

WARM_UP = 20  # steps in which caches, workers and optimizer states are made
MIN_MEMORY_STEPS = 100
GROWTH = 0.2
MAX_POINTS = 400  # of a Theil-Sen fit: 80,000 pairs

WAIT_WINDOW = 50
MIN_WAIT_STEPS = 20
MAX_WAIT = 0.2


@rule(
    "repeated-data",
    threshold="in consecutive steps that drew D samples of num_samples N: a sample drawn more than ceil(D / N) + 1 "
    "times, or one never drawn though D >= 2 N - 1",
    source="exact for shuffled epochs, wherever they are cut: each epoch draws each sample once. The worst known cases "
    "are a sampler that is not given the epoch (torch's DistributedSampler.set_epoch) and workers with one seed",
)
def repeated_data(history: History) -> list[Finding]:
    """A loader that hands out some samples again and again, and others never, trains on another data set.

    Needs num_samples of the header. A batch larger than the data set, or as large, repeats nothing that others lack.
    """
    num_samples = history.header.get("num_samples")
    if not isinstance(num_samples, int) or num_samples < 1:
        return []
    for records in _consecutive(history.records()):
        counts: Counter[str] = Counter()
        drawn = 0
        for record in records:
            counts.update(record["samples"])
            drawn += len(record["samples"])
            allowed = math.ceil(drawn / num_samples) + 1
            name, most = max(((one, counts[one]) for one in record["samples"]), key=lambda pair: pair[1])
            missing = num_samples - len(counts) if drawn >= 2 * num_samples - 1 else 0
            if most <= allowed and missing <= 0:
                continue
            steps = record["step"] - records[0]["step"] + 1
            evidence = f"{name} was drawn {most} times in {steps} steps, {len(counts)} of {num_samples} samples in all"
            if sorted(record["samples"]) == sorted(records[max(0, steps - 2)]["samples"]) and steps > 1:
                evidence += "; the last two batches are the same"
            advice = "look at the sampler: its seed by epoch (set_epoch), by worker and by process, and where it begins"
            return [Finding("repeated-data", "warning", record["step"], evidence, advice)]
    return []


def _consecutive(records: Sequence[TrainingStep]) -> list[list[TrainingStep]]:
    """Stretches of records without a step missing between them; a record without samples ends one."""
    stretches: list[list[TrainingStep]] = []
    last = None
    for record in records:
        if not record.get("samples"):
            last = None
            continue
        if last is None or record["step"] != last + 1:
            stretches.append([])
        stretches[-1].append(record)
        last = record["step"]
    return stretches


@rule(
    "memory-growth",
    threshold=f"after {WARM_UP} steps, over {MIN_MEMORY_STEPS} or more: the Theil-Sen line grows by {GROWTH:.0%} or "
    "more, and in its second half no slower than at half that rate",
    source="Theil 1950, Sen 1968 (the median slope: a step up, such as at the first validation, does not tilt it); "
    "pytorch/pytorch#13246 (loader workers whose lists are copied)",
)
def memory_growth(history: History) -> list[Finding]:
    """Memory that grows with every step ends the run some night. What is made once, early, is no leak."""
    curve = history.curve("memory_gib")
    points = [(step, gib) for step, gib in curve if math.isfinite(gib)][WARM_UP:]
    if len(points) < MIN_MEMORY_STEPS:
        return []
    steps, gib = torch.tensor(points[:: -(-len(points) // MAX_POINTS)], dtype=torch.float64).T
    slope, half = _theil_sen(steps, gib), len(steps) // 2
    first, last = (float(part.median()) for part in (gib[: half // 4], gib[-half // 4 :]))
    grown = slope * float(steps[-1] - steps[0])
    if not grown > 0 or grown < GROWTH * first:  # a device that measures nothing says 0.0
        return []
    if min(_theil_sen(steps[half:], gib[half:]), (last - first) / grown * slope) < slope / 2:
        return []
    evidence = f"{number(first)} GiB at first, {number(last)} at last: {number(slope * 1000 * 1024)} MiB in 1,000 steps"
    advice = "look for tensors that are kept with their graph (append(loss) without item()), growing lists and caches"
    return [Finding("memory-growth", "warning", int(steps[-1]), evidence, advice)]


def _theil_sen(x: Tensor, y: Tensor) -> float:
    """Median slope of all pairs."""
    i, j = torch.triu_indices(len(x), len(x), offset=1)
    return float(((y[j] - y[i]) / (x[j] - x[i])).median())


@rule(
    "waiting-for-data",
    threshold=f"the median data_wait_share of the last {WAIT_WINDOW} steps ({MIN_WAIT_STEPS} at least, the first left "
    f"out) is above {MAX_WAIT:.0%}",
    source="the share that the warning during training names, too; above it a fifth of the device's time is paid for "
    "nothing",
)
def waiting_for_data(history: History) -> list[Finding]:
    """A step that waits for its data could be faster without a change to the model. The median: reading is uneven."""
    curve = history.curve("data_wait_share")
    shares = torch.tensor([share for _, share in _without_first(curve)][-WAIT_WINDOW:], dtype=torch.float64)
    if len(shares) < MIN_WAIT_STEPS or not float(shares.median()) > MAX_WAIT:
        return []
    evidence = f"{float(shares.median()):.0%} of a step's time (median of {len(shares)}) went into waiting for data"
    advice = "more loader workers, a faster disk, or data that are prepared once"
    return [Finding("waiting-for-data", "warning", curve.steps[-1], evidence, advice)]


def _without_first(curve: Curve) -> list[tuple[int, float]]:
    return [(step, share) for step, share in list(curve)[1:] if math.isfinite(share)]
