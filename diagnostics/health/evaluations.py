"""Rules of what the evaluations say: whether the loss falls, and whether the conditions reach the model."""

from diagnostics.health.rule import Finding, Severity, number, rule, warming_up
from diagnostics.records import History

NO_RESPONSE = 1e-4
NUM_SILENT = 3
FEW_SILENT = 2  # of a short run

MIN_EVALUATIONS = 5
FEW_EVALUATIONS = 3  # of a short run, the first one included
MIN_FALL = 0.01

MIN_STEPS = 50  # before few evaluations count


@rule(
    "no-response",
    threshold=f"in each of the last {NUM_SILENT} evaluations after step 0 (of {FEW_SILENT}, if no more are there and "
    f"{MIN_STEPS} steps were made), a response_* (relative change of the output when this condition alone is changed) "
    f"is below {NO_RESPONSE:g}, and the learning rate no longer rises; alarm where it is 0",
    source="a thousand times float32's rounding (1.2e-7), far below what a condition that is used does: 2e-3 to 0.1 in "
    "runs of this project",
)
def no_response(history: History) -> list[Finding]:
    """A model that ignores a condition can have a falling loss for as long as the average answer is good enough.

    At step 0 a zero-initialised path answers with nothing; three evaluations later it has learned something, or not.
    """
    findings = []
    for kind in history.evaluations:
        records = [record for record in history.records(kind)[-NUM_SILENT:] if record["step"] > 0]
        names = dict.fromkeys(key for record in records for key in record if key.startswith("response_"))
        for name in names:
            values = [record[name] for record in records if isinstance(record.get(name), (int, float))]
            few = len(values) < NUM_SILENT and records[-1]["step"] < MIN_STEPS
            if len(values) < FEW_SILENT or few or not all(value < NO_RESPONSE for value in values):
                continue
            condition = name.removeprefix("response_")
            severity: Severity = "alarm" if all(value == 0 for value in values) else "warning"
            if severity == "warning" and len(values) < NUM_SILENT and warming_up(history):
                continue
            evidence = f"changing {condition} alone changes the output by {number(values[-1])} of itself"
            advice = f"follow {condition} from the data to the model: is it embedded, scaled, and handed in?"
            findings.append(Finding("no-response", severity, records[-1]["step"], evidence, advice))
    return findings


@rule(
    "loss-does-not-fall",
    threshold=f"of {MIN_EVALUATIONS} evaluations or more (of {FEW_EVALUATIONS}, {MIN_STEPS} steps apart, where the "
    f"learning rate no longer rises), the best loss is less than {MIN_FALL:.0%} below the first",
    source="the same samples, noise and t each time, so that a fall of one percent is no chance; LossNotDecreasing of "
    "AWS SageMaker Debugger",
)
def loss_does_not_fall(history: History) -> list[Finding]:
    """The training loss of a diffusion model is mostly the noise of t and eps; the fixed grid's is not."""
    findings = []
    for kind in history.evaluations:
        losses = history.curve("loss", kind)
        span = losses.steps[-1] - losses.steps[0] if losses.steps else 0
        few = span < MIN_STEPS or warming_up(history)
        if len(losses) < (MIN_EVALUATIONS if few else FEW_EVALUATIONS) or not losses.values[0] > 0:
            continue
        best = min((loss for loss in losses.values[1:] if loss == loss), default=losses.values[0])
        if best > (1 - MIN_FALL) * losses.values[0]:
            evidence = (
                f"{kind} loss {number(losses.values[0])} at step {losses.steps[0]}, at best {number(best)} in "
                f"{len(losses) - 1} evaluations since"
            )
            advice = "overfit a handful of samples first; then raise the learning rate, or look at the gradients"
            findings.append(Finding("loss-does-not-fall", "warning", losses.steps[-1], evidence, advice))
    return findings
