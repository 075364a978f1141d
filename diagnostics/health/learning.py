"""Rules of layers that carry nothing and of parameters that do not learn, or learn too fast."""

import torch
from torch import Tensor

from diagnostics.health.inputs import never_ran
from diagnostics.health.rule import PIECE, Finding, number, rule
from diagnostics.records import History

RECENT = 5  # records with statistics
MIN_RECORDS = 10
LARGE_RATIO = 0.1  # of the median parameter
REPLACED = 1.0  # of one parameter
MOST = 0.5  # share of the parameters that makes an alarm


@rule(
    "dead-layer",
    threshold=f"in each of the last {RECENT} records with statistics: the output is all zero, or a layer with "
    "parameters gets no gradient, or one that is all zero, while other layers get some",
    source="Lu et al. 2020 (arXiv 1903.06733, dying ReLU); DeadRelu and gradient rules of AWS SageMaker Debugger",
)
def dead_layer(history: History) -> list[Finding]:
    """A layer that always returns zero, or that no gradient reaches, takes no part in the training.

    Zero-initialised layers return zeros in their first step and no gradient passes them: they wake up with the first
    update, so that five records in a row are no beginning. Layers without parameters of their own may lack a gradient.
    """
    activation = history.layers("max_abs", columns=slice(-RECENT, None))
    gradient = history.layers("max_abs", "gradient", slice(-RECENT, None))
    if len(activation.steps) < RECENT:
        return []
    trained = {name.rpartition(".")[0] for name in history.parameter_names}
    ran = activation.present.all(1)
    silent = ran & (activation.values == 0).all(1)
    arrives = gradient.present & (gradient.values != 0)  # NaN is no zero
    cut_off = ran & ~arrives.any(1) if bool(arrives.any(0).all()) else torch.zeros_like(ran)
    findings = []
    for row, name in enumerate(activation.names):
        if silent[row]:
            evidence = f"the output was all zero in the last {RECENT} records"
            advice = "look at its input, its bias and its learning rate; a smaller rate keeps a ReLU from dying"
        elif cut_off[row] and name in trained:
            kind = "zero" if gradient.present[row].any() else "no"
            evidence = f"{kind} gradient arrived in the last {RECENT} records"
            advice = "its output does not reach the loss: look for detach, no_grad, a zero factor, an unused branch"
        else:
            continue
        findings.append(Finding("dead-layer", "warning", activation.steps[-1], evidence, advice, layer=name))
    return findings


@rule(
    "never-updated",
    threshold=f"in every record of a step that was taken ({RECENT} at least): no gradient, a gradient of zero, or a "
    "weight that was zero before each step though a gradient arrived",
    source="unused parameters: torch's DistributedDataParallel(find_unused_parameters); NVIDIA-NeMo/Automodel#1527",
)
def never_updated(history: History) -> list[Finding]:
    """A parameter that requires a gradient and has never moved is not trained, whatever the loss does."""
    columns, _ = _taken(history)
    if len(columns) < RECENT:
        return []
    last_step = history.measured_steps[int(columns[-1])]
    named = history.named_parameters()[:, columns]
    arrived, pushed = _there_and_not_zero(history, "gradient_norm", columns)
    none_or_zero = ~arrived | ~pushed
    measured, moved = _there_and_not_zero(history, "update_ratio", columns)
    names, elsewhere = history.parameter_names, never_ran(history)
    unreached = none_or_zero.all(1) & ~(moved & ~arrived).any(1)  # a step in backward frees the gradient
    zero = ~measured.any(1) & (arrived | ~named).all(1)
    findings = []
    for row in ((named.sum(1) >= RECENT) & (unreached | zero)).nonzero().flatten().tolist():
        if names[row].rpartition(".")[0] in elsewhere:
            continue
        times = int(named[row].sum())
        if unreached[row]:
            kind = "the gradient was zero" if arrived[row].any() else "no gradient arrived"
            evidence = f"{kind} in all {times} records"
            advice = "connect it to the loss, or freeze it (requires_grad=False)"
        else:
            evidence = f"still all zero after {times} records, though gradients arrive"
            advice = "give it to the optimizer; look for a learning rate of 0 in its group"
        findings.append(Finding("never-updated", "warning", last_step, evidence, advice, parameter=names[row]))
    return findings


@rule(
    "lost-updates",
    threshold=f"in each of the last {RECENT} records with statistics: update ratio exactly 0 while a gradient arrived; "
    f"not in a warm-up; alarm where this is so for {MOST:.0%} of the parameters",
    source="bfloat16 has 8 bits: an update below 1/512 of a weight is lost. Micikevicius et al. 2018 (arXiv "
    "1710.03740, section 3.1: float32 master weights); Zamirai et al. 2020 (arXiv 2010.06192)",
)
def lost_updates(history: History) -> list[Finding]:
    """Updates smaller than half the distance to the weight's neighbour are rounded away, every one of them.

    The first steps of a warm-up and the last ones of a schedule that ends at zero are so small by design: records
    whose learning rate is below a hundredth of the highest are left out, and nothing is said while it still rises.
    """
    columns, rates = _taken(history)
    if not len(columns):
        return []
    highest = rates.max()
    if len(rates) > 1 and rates[-1] == highest and rates[-1] > rates[-RECENT:].min():
        return []  # a warm-up
    kept = columns[rates >= highest / 100][-RECENT:]
    if len(kept) < RECENT:
        return []
    step = history.measured_steps[int(kept[-1])]
    gradient, ratio = history.parameters("gradient_norm", kept), history.parameters("update_ratio", kept)
    names, norms = gradient.names, gradient.values
    still = ratio.present & (ratio.values == 0) & gradient.present & (norms > 0)
    lost = [(names[row], float(norms[row, -1])) for row in still.all(1).nonzero().flatten().tolist()]
    evidence = f"in the last {RECENT} records, with gradients of norm"
    advice = "keep the weights in float32 (autocast computes in half precision), or raise the learning rate"
    if lost and len(lost) >= MOST * len(names):
        median = sorted(norm for _, norm in lost)[len(lost) // 2]
        evidence = f"{len(lost)} of {len(names)} parameters did not move {evidence} {number(median)}"
        return [Finding("lost-updates", "alarm", step, evidence, advice)]
    return [
        Finding("lost-updates", "warning", step, f"did not move {evidence} {number(norm)}", advice, parameter=name)
        for name, norm in lost
    ]


@rule(
    "large-updates",
    threshold=f"in each of the last {RECENT} records with statistics (of {MIN_RECORDS} at least): the median "
    f"parameter moves by more than {LARGE_RATIO:g} of its norm, or one by more than {REPLACED:g}",
    source="about 1e-3 is healthy (Karpathy, CS231n, Neural Networks Part 3, ratio of weights:updates); a hundred "
    "times that is far beyond what a young bias or a high rate on a small model shows",
)
def large_updates(history: History) -> list[Finding]:
    """Steps as large as the weights themselves forget what was learned.

    Biases and other zero-initialised parameters begin with a ratio above 1, which falls as they grow.
    """
    columns, _ = _taken(history)
    if len(columns) < MIN_RECORDS:
        return []
    table = history.parameters("update_ratio", columns[-RECENT:])
    last_step, ratios = table.steps[-1], table.values
    advice = "lower the learning rate, or warm it up for longer"
    medians = ratios.nanmedian(0).values
    if bool((medians > LARGE_RATIO).all()):
        evidence = f"half of all parameters move by more than {number(float(medians[-1]))} of their norm in a step"
        return [Finding("large-updates", "alarm", last_step, evidence, advice)]
    rows = (ratios > REPLACED).all(1).nonzero().flatten().tolist()
    return [
        Finding(
            "large-updates",
            "warning",
            last_step,
            f"moves by {number(float(ratios[row, -1]))} of its norm in a step",
            advice,
            parameter=table.names[row],
        )
        for row in rows
    ]


def _there_and_not_zero(history: History, key: str, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Of each parameter in some columns of the tables, (parameters, columns) bool: whether it has the number, and
    whether it has one that is not zero."""
    there, not_zero = [], []
    for piece in columns.split(PIECE):
        table = history.parameters(key, piece)
        there.append(table.present)
        not_zero.append(table.present & (table.values != 0))
    return torch.cat(there, 1), torch.cat(not_zero, 1)


def _taken(history: History) -> tuple[Tensor, Tensor]:
    """Columns of the tables that have parameters and are of steps in which the optimizer moved at a rate above zero,
    and these rates: 1 where none is recorded, so that all steps count alike."""
    rates = history.measured_numbers("learning_rate")
    rates = rates.where(rates.isfinite(), 1.0)
    was_made = ~history.measured_skipped & ~history.measured_tripped
    updates = history.measured_numbers("num_updates")
    taken = history.has_parameters & was_made & (rates > 0) & ~(updates == 0)
    return taken.nonzero().flatten(), rates[taken]
