"""Rules of what a run lives on: its samples, its memory, its time."""

import math
from collections import Counter

import torch
from torch import Tensor

from diagnostics.health.rule import Finding, number, rule
from diagnostics.records import Curve, History, Samples

STEPS_AT_ONCE = 10_000  # of drawn samples
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
    samples, steps = history.samples(), torch.tensor(history.steps())
    for first, end in consecutive(steps, samples.counts):
        found = _repeated(samples, first, end, num_samples)
        if found is None:
            continue
        drawn = samples.numbers[int(samples.counts[:first].sum()) : int(samples.counts[: found + 1].sum())]
        times = Counter(drawn.tolist())
        batch = drawn[len(drawn) - int(samples.counts[found]) :].tolist()
        name = max(batch, key=times.__getitem__)
        evidence = f"{samples.ids[name]} was drawn {times[name]} times in {found - first + 1} steps, {len(times)} of "
        evidence += f"{num_samples} samples in all"
        before = drawn[: len(drawn) - len(batch)][-int(samples.counts[found - 1]) :].tolist() if found > first else None
        if before is not None and sorted(batch) == sorted(before):
            evidence += "; the last two batches are the same"
        advice = "look at the sampler: its seed by epoch (set_epoch), by worker and by process, and where it begins"
        return [Finding("repeated-data", "warning", int(steps[found]), evidence, advice)]
    return []


def consecutive(steps: Tensor, counts: Tensor) -> list[tuple[int, int]]:
    """(first, end) of stretches without a step missing between them; a step without samples ends one. Both (steps,)."""
    drew = counts > 0
    goes_on = torch.zeros_like(drew)
    goes_on[1:] = drew[1:] & drew[:-1] & (steps[1:] == steps[:-1] + 1)
    firsts = (drew & ~goes_on).nonzero().flatten().tolist()
    lasts = (drew & ~torch.cat([goes_on[1:], torch.zeros(1, dtype=torch.bool)])).nonzero().flatten().tolist()
    return [(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]


def _repeated(samples: Samples, first: int, end: int, num_samples: int) -> int | None:
    """The first step of a stretch in which a sample was drawn too often, or one is missing."""
    times = torch.zeros(len(samples.ids), dtype=torch.int64)
    begin, drawn, seen = int(samples.counts[:first].sum()), 0, 0
    for at in range(first, end, STEPS_AT_ONCE):
        counts = samples.counts[at : min(end, at + STEPS_AT_ONCE)]
        numbers = samples.numbers[begin : begin + int(counts.sum())].long()
        nth = _occurrences(numbers) + times[numbers]
        times += torch.bincount(numbers, minlength=len(times))
        step = torch.repeat_interleave(torch.arange(len(counts)), counts)
        most = torch.zeros(len(counts), dtype=torch.int64).scatter_reduce(0, step, nth, "amax")
        fresh = torch.zeros(len(counts), dtype=torch.int64).scatter_add(0, step, (nth == 1).long())
        total, distinct = drawn + counts.cumsum(0), seen + fresh.cumsum(0)
        allowed = -(-total // num_samples) + 1
        bad = (most > allowed) | ((total >= 2 * num_samples - 1) & (distinct < num_samples))
        if bool(bad.any()):
            return at + int(bad.nonzero()[0])
        begin, drawn, seen = begin + len(numbers), int(total[-1]), int(distinct[-1])
    return None


def _occurrences(numbers: Tensor) -> Tensor:
    """Of each number how often it stood before it and there, (N,) int64: 1 for the first time."""
    ordered, order = numbers.sort(stable=True)
    place = torch.arange(len(numbers))
    begins = torch.ones(len(numbers), dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    since = place - torch.where(begins, place, 0).cummax(0).values
    return torch.empty_like(since).scatter(0, order, since + 1)


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
