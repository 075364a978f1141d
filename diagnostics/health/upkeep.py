"""Rules of what surrounds an update: the averages, the gradients left over, the frozen weights, the step itself."""

from diagnostics.health.rule import Finding, number, rule
from diagnostics.records import History

NUM_RECORDS = 3
MIN_MOVED, MAX_MOVED = 0.2, 5.0


@rule(
    "ema-does-not-follow",
    threshold=f"in each of the last {NUM_RECORDS} records that measured it, the averages moved by less than "
    f"{MIN_MOVED:g} or more than {MAX_MOVED:g} times what their decay asks for",
    source="(1 - decay) times the distance, by definition of an exponential moving average; far off where it is never "
    "updated, holds other parameters than the optimizer moves, or loses updates to rounding",
    live=True,
)
def ema_does_not_follow(history: History) -> list[Finding]:
    """Averages that stand still are the weights that the run began with, and they are what is validated and shipped."""
    moved, distance = list(history.curve("ema_moved"))[-NUM_RECORDS:], history.curve("ema_distance")
    if len(moved) < NUM_RECORDS or not all(not MIN_MOVED <= value <= MAX_MOVED for _, value in moved):
        return []
    step, value = moved[-1]
    evidence = (
        f"the averages moved by {number(value)} of what their decay asks for; they are "
        f"{number(distance.last or 0.0)} of the weights' norm away from the weights"
    )
    advice = "update the EMA after each optimizer step, with the parameters that the optimizer moves"
    return [Finding("ema-does-not-follow", "alarm", step, evidence, advice)]


@rule(
    "gradients-summed",
    threshold="in 2 records or more gradients were there before the step's first forward pass",
    source="gradients add up unless zero_grad is called (torch.optim); stackoverflow 60335387",
    live=True,
)
def gradients_summed(history: History) -> list[Finding]:
    """Without zero_grad each step follows the sum of all gradients since the beginning, a momentum without end."""
    carried = [(step, value) for step, value in history.curve("gradient_carried") if value != 0]
    if len(carried) < 2:
        return []
    step, value = carried[0]
    evidence = f"gradients of norm {number(value)} were left from the step before, in {len(carried)} records"
    advice = "call optimizer.zero_grad() before the first backward pass of each step"
    return [Finding("gradients-summed", "alarm", step, evidence, advice)]


@rule(
    "frozen-weights-move",
    threshold="a parameter without requires_grad is not, in every bit, what it was when the session began",
    source="frozen is bit-equal; open-mmlab/mmpretrain#702 (freezing not applied); AdamW's weight decay and old "
    "moments move what gets no new gradient",
    live=True,
)
def frozen_weights_move(history: History) -> list[Finding]:
    """A frozen part that drifts is no longer what was loaded, and nothing in the loss says so."""
    findings = []
    for name in history.keys(within="frozen_moved"):
        moved = history.curve(f"frozen_moved.{name}")
        if len(moved):
            evidence = f"it is frozen, and moved by {number(moved.values[0])} of its norm since the session began"
            advice = "leave it out of the optimizer (weight decay moves it, too), and look for copies into it"
            findings.append(Finding("frozen-weights-move", "alarm", moved.steps[0], evidence, advice, parameter=name))
    return findings[:5]


@rule(
    "no-step-taken",
    threshold=f"in each of the last {NUM_RECORDS} records that counted them, the optimizer was not stepped, though no "
    "scaler skipped it",
    source="a training_step that returns None (Lightning then makes no step), a step behind a condition that never "
    "holds",
    live=True,
)
def no_step_taken(history: History) -> list[Finding]:
    """Weights that never move have a loss all the same."""
    places, counts = history.points("num_updates")
    held = ~(history.skipped() | history.tripped())[places]
    counts, places = counts[held][-NUM_RECORDS:], places[held][-NUM_RECORDS:]
    if len(counts) < NUM_RECORDS or bool((counts != 0).any()):
        return []
    evidence = f"the optimizer was not stepped in the last {NUM_RECORDS} records"
    advice = "call optimizer.step() once for each step, on the optimizer that holds the model's parameters"
    return [Finding("no-step-taken", "alarm", history.steps()[int(places[-1])], evidence, advice)]
