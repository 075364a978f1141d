"""Rules of what must go on as it was: a resumed run's loss, a new epoch's order, the learning rate's schedule."""

import math

import torch
from torch import Tensor

from diagnostics.health.rule import Finding, number, rule
from diagnostics.health.supply import consecutive
from diagnostics.records import Header, History

BEFORE = 20  # steps before a resume
LEAST_BEFORE = 5
AFTER = 3  # steps after it, all of which must be worse
JUMP = 1.5

LEAST_SAMPLES = 8  # two orders of these are the same by chance once in 40,320 times

MAX_OFF = 1e-3
MIN_OFF_STEPS = 3


@rule(
    "resume-jumps",
    threshold=f"each of the first {AFTER} losses after a resume is above the largest of the {BEFORE} before it "
    f"({LEAST_BEFORE} at least), and their median above {JUMP:g} times the median of those",
    source=f"by chance once in {math.comb(BEFORE + AFTER, AFTER):,} resumes without the factor; a checkpoint "
    "that is read under another name, or not at all, leaves the weights that the run began with",
    live=True,
)
def resume_jumps(history: History) -> list[Finding]:
    """A run that goes on from a checkpoint goes on with its loss, too. One that begins again with the loss of an
    untrained model has lost its weights, one that jumps and comes back its moments or its data order."""
    losses, steps = history.numbers("loss"), torch.tensor(history.steps())
    findings = []
    for header in history.headers:
        at = header.get("resumed_at")
        if not isinstance(at, int) or at < 1 or header.get("stage", history.kind) != history.kind:
            continue
        sound = losses.isfinite()
        before = losses[sound & (steps <= at) & (steps > at - BEFORE)]
        after = losses[sound & (steps > at)][:AFTER]
        if len(before) < LEAST_BEFORE or len(after) < AFTER or not float(before.median()) > 0:
            continue
        if float(after.min()) > float(before.max()) and float(after.median()) > JUMP * float(before.median()):
            evidence = (
                f"the loss is {number(float(after.median()))} in the {AFTER} steps after the resume at step {at}, "
                f"{number(float(before.median()))} in the {len(before)} before (medians)"
            )
            advice = "compare the loaded weights, averages, moments and data position with what was saved"
            findings.append(Finding("resume-jumps", "alarm", at + 1, evidence, advice))
    return findings[-1:]


@rule(
    "order-repeated",
    threshold=f"two epochs in a row draw all num_samples ({LEAST_SAMPLES} at least) in the same order",
    source="torch's DistributedSampler: without set_epoch each epoch has the same order; SGD converges faster with "
    "reshuffling (Recht and Re 2012, arXiv 1202.4184; Mishchenko et al. 2020, arXiv 2006.05988)",
)
def order_repeated(history: History) -> list[Finding]:
    """A shuffle that is drawn once, or with the same seed every epoch, shows the model the same batches forever."""
    length = history.header.get("num_samples")
    if not isinstance(length, int) or length < LEAST_SAMPLES:
        return []
    samples, steps = history.samples(), torch.tensor(history.steps())
    for first, end in consecutive(steps, samples.counts):
        begin = int(samples.counts[:first].sum())
        drawn = samples.numbers[begin : begin + int(samples.counts[first:end].sum())]
        place = _repeated_at(drawn, length)
        if place is not None:
            ends = samples.counts[first:end].cumsum(0)
            step = int(steps[first + int(torch.searchsorted(ends, place + 2 * length))])
            evidence = f"the {length} samples of one epoch came in the order of the epoch before"
            advice = "shuffle each epoch with a seed of its own (set_epoch, or a generator that goes on)"
            return [Finding("order-repeated", "warning", step, evidence, advice)]
    return []


def _repeated_at(drawn: Tensor, length: int) -> int | None:
    """Where the first epoch begins that the next one repeats; an epoch is `length` draws without a sample twice."""
    if len(drawn) < 2 * length:
        return None
    same = torch.zeros(len(drawn) - length + 1, dtype=torch.int64)
    same[1:] = (drawn[length:] == drawn[:-length]).long().cumsum(0)
    whole = (same[length:] - same[:-length] == length).nonzero().flatten().tolist()
    return next((at for at in whole[:length] if len(drawn[at : at + length].unique()) == length), None)


@rule(
    "rate-off-schedule",
    threshold=f"the learning rate of {MIN_OFF_STEPS} steps or more is off the header's schedule by more than "
    f"{MAX_OFF:g} of its peak",
    source="the schedule is a formula of the step, so that a difference is no noise: one stepped once a process "
    "runs ahead (accelerate's prepared schedulers do so by design), a scheduler never stepped stays",
)
def rate_off_schedule(history: History) -> list[Finding]:
    """The optimizer's own rate, compared with what the configuration says for the step. Needs `schedule` of the
    header."""
    curve = history.curve("learning_rate")
    headers = [one for one in history.headers if one.get("stage", history.kind) == history.kind]
    off: list[tuple[int, float, float]] = []
    for step, rate in curve:
        wanted = _scheduled(headers, step)
        if wanted is not None and math.isfinite(rate) and abs(rate - wanted[0]) > MAX_OFF * wanted[1]:
            off.append((step, rate, wanted[0]))
    if len(off) < MIN_OFF_STEPS:
        return []
    step, rate, wanted_rate = off[0]
    evidence = (
        f"the rate is {number(rate)}, the schedule says {number(wanted_rate)}; in {len(off)} of {len(curve)} steps"
    )
    advice = "look at who sets the rate of the optimizer's groups, when, and how often a scheduler is stepped"
    return [Finding("rate-off-schedule", "alarm", step, evidence, advice)]


def _scheduled(headers: list[Header], step: int) -> tuple[float, float] | None:
    """What the last session that wrote this 1-based step asked for, and its peak; None where it did not say."""
    header = next((one for one in reversed(headers) if step > one.get("resumed_at", 0)), None)
    schedule = None if header is None else header.get("schedule")
    if not isinstance(schedule, dict):
        return None
    try:
        peak, warmup = float(schedule["learning_rate"]), int(schedule["warmup_steps"])
        last, kind = int(schedule["max_steps"]), schedule["schedule"]
    except (KeyError, TypeError, ValueError):
        return None
    done = step - 1
    if done < warmup:
        return peak * step / warmup, peak
    if kind == "constant":
        return peak, peak
    if kind != "cosine":
        return None
    share = min(1.0, (done - warmup) / max(1, last - warmup))
    return peak * (1 + math.cos(math.pi * share)) / 2, peak
