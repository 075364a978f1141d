"""Rules of the shape of a loss: a level that jumps up, one that stands still far too high."""

import torch

from diagnostics.health.gradients import exploding
from diagnostics.health.rule import Finding, number, rule, warming_up
from diagnostics.records import History

RECENT = 5  # steps whose median is judged
WINDOW = 50  # steps before them
MIN_BEFORE = 20
SPIKE = 2.0

MIN_EVALUATIONS = 9
MIN_GAIN = 0.01
HIGH = 0.5  # of the first loss


@rule(
    "loss-spike",
    threshold=f"the median loss of {RECENT} steps is above {SPIKE:g} times the largest of the {WINDOW} steps before "
    f"({MIN_BEFORE} at least); alarm where it lasts to the end",
    source="Chowdhery et al. 2022 (arXiv 2204.02311, section 5.1: spikes of PaLM's loss, from which runs were rolled "
    "back); one bad batch moves no median of five",
)
def loss_spike(history: History) -> list[Finding]:
    """A loss that leaves its range and stays out of it. Where the gradients explode, that is said instead."""
    losses, steps = history.numbers("loss"), torch.tensor(history.steps())
    kept = losses.isfinite() & ~history.skipped()
    losses, steps = losses[kept], steps[kept]
    if len(losses) < MIN_BEFORE + RECENT or not bool((losses > 0).all()):
        return []
    recent = losses.unfold(0, RECENT, 1).median(1).values[MIN_BEFORE:]  # of the steps from MIN_BEFORE + RECENT - 1 on
    before = torch.nn.functional.pad(losses[:-RECENT], (WINDOW - MIN_BEFORE, 0), value=0.0)
    largest = before.unfold(0, WINDOW, 1).max(1).values
    hits = (recent > SPIKE * largest).nonzero().flatten().tolist()
    if not hits or exploding.check(history):
        return []
    first = hits[0]
    lasts = bool(losses[-RECENT:].median() > SPIKE * largest[first])
    evidence = (
        f"loss {number(float(recent[first]))} (median of {RECENT} steps), the largest of the steps before was "
        f"{number(float(largest[first]))}{'' if lasts else '; it came down again'}"
    )
    advice = "look at the samples of these steps and at the learning rate; go on from a checkpoint before"
    step = int(steps[first + MIN_BEFORE])
    return [Finding("loss-spike", "alarm" if lasts else "warning", step, evidence, advice)]


@rule(
    "loss-plateau",
    threshold=f"of {MIN_EVALUATIONS} evaluations or more: the loss fell at first, its best after a third is less "
    f"than {MIN_GAIN:.0%} below the best until then and above {HIGH:.0%} of the first, and the median training loss of "
    f"the last third is no {MIN_GAIN:.0%} below that of the second; not where the learning rate has come down to half",
    source="what is learned from the mean of the data alone is learned early (a model that ignores its inputs); "
    "LossNotDecreasing of AWS SageMaker Debugger; AUTOTRAINER (Zhang et al. 2021), `slow convergence`",
)
def loss_plateau(history: History) -> list[Finding]:
    """Both losses stand still, early and high. A validation loss alone may rise: that is overfitting."""
    rates = history.curve("learning_rate").values
    if warming_up(history) or (rates and rates[-1] <= 0.5 * max(rates)):
        return []
    training = history.numbers("loss")
    training = training[training.isfinite()]
    third = len(training) // 3
    if third < 2 * RECENT:
        return []
    standing = float(training[-third:].median()) > (1 - MIN_GAIN) * float(training[third:-third].median())
    findings = []
    for kind in history.evaluations if standing else ():
        losses = history.curve("loss", kind)
        values = torch.tensor(losses.values, dtype=torch.float64)
        if len(losses) < MIN_EVALUATIONS or not bool(values.isfinite().all()) or not float(values[0]) > 0:
            continue
        early, late = float(values[: len(values) // 3].min()), float(values[len(values) // 3 :].min())
        first = float(values[0])
        if early < (1 - MIN_GAIN) * first and late > (1 - MIN_GAIN) * early and late > HIGH * first:
            evidence = (
                f"{kind} loss {number(first)} at first, {number(early)} in the first third of the run, at best "
                f"{number(late)} since; the training loss stands still, too"
            )
            advice = "see whether the inputs reach the model (overfit), then raise the learning rate"
            findings.append(Finding("loss-plateau", "warning", losses.steps[-1], evidence, advice))
    return findings
