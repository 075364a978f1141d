"""Rules of layers that carry nothing and of parameters that do not learn, or learn too fast."""

import math
from collections.abc import Mapping

import torch

from diagnostics.health.rule import Finding, number, rule
from diagnostics.records import History, TrainingStep

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
    activation, gradient = history.layers("max_abs"), history.layers("max_abs", "gradient")
    if len(activation.steps) < RECENT:
        return []
    trained = {name.rpartition(".")[0] for name in history.parameter_names}
    ran = activation.present[:, -RECENT:].all(1)
    silent = ran & (activation.values[:, -RECENT:] == 0).all(1)
    arrives = gradient.values[:, -RECENT:] != 0  # NaN is no zero
    arrives &= gradient.present[:, -RECENT:]
    cut_off = ran & ~arrives.any(1) if bool(arrives.any(0).all()) else torch.zeros_like(ran)
    findings = []
    for row, name in enumerate(activation.names):
        if silent[row]:
            evidence = f"the output was all zero in the last {RECENT} records"
            advice = "look at its input, its bias and its learning rate; a smaller rate keeps a ReLU from dying"
        elif cut_off[row] and name in trained:
            kind = "zero" if gradient.present[row, -RECENT:].any() else "no"
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
    records = _taken(history)
    if len(records) < RECENT:
        return []
    findings, last_step = [], records[-1]["step"]
    for name in history.parameter_names:
        numbers = [r["parameters"][name] for r in records if name in r["parameters"]]
        if len(numbers) < RECENT:
            continue
        gradients = [one.get("gradient_norm") for one in numbers]
        ratios = [one.get("update_ratio") for one in numbers]
        unreached = all(gradient is None or gradient == 0 for gradient in gradients)
        stepped_in_backward = any(r for r, g in zip(ratios, gradients, strict=True) if g is None)  # gradients are freed
        if unreached and not stepped_in_backward:
            kind = "no gradient arrived" if all(g is None for g in gradients) else "the gradient was zero"
            evidence = f"{kind} in all {len(numbers)} records"
            advice = "connect it to the loss, or freeze it (requires_grad=False)"
        elif all(ratio is None for ratio in ratios) and all(gradient is not None for gradient in gradients):
            evidence = f"still all zero after {len(numbers)} records, though gradients arrive"
            advice = "give it to the optimizer; look for a learning rate of 0 in its group"
        else:
            continue
        findings.append(Finding("never-updated", "warning", last_step, evidence, advice, parameter=name))
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
    records = _taken(history)
    rates = [_rate(record) for record in records]
    highest = max(rates, default=0.0)
    if len(rates) > 1 and rates[-1] == highest and rates[-1] > min(rates[-RECENT:]):
        return []  # a warm-up
    kept = [record for record, rate in zip(records, rates, strict=True) if rate >= highest / 100][-RECENT:]
    if len(kept) < RECENT:
        return []
    step = kept[-1]["step"]
    names = history.parameter_names
    lost = []
    for name in names:
        numbers = [record["parameters"].get(name, {}) for record in kept]
        norm = numbers[-1].get("gradient_norm")
        if norm is not None and all(one.get("update_ratio") == 0 and _arrived(one) for one in numbers):
            lost.append((name, norm))
    evidence = f"in the last {RECENT} records, with gradients of norm"
    advice = "keep the weights in float32 (autocast computes in half precision), or raise the learning rate"
    if lost and len(lost) >= MOST * len(names):
        norms = sorted(norm for _, norm in lost)
        evidence = f"{len(lost)} of {len(names)} parameters did not move {evidence} {number(norms[len(norms) // 2])}"
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
    records = _taken(history)
    if len(records) < MIN_RECORDS:
        return []
    table, last_step = history.parameters("update_ratio"), records[-1]["step"]
    columns = [table.steps.index(record["step"]) for record in records[-RECENT:]]
    ratios = table.values[:, columns]
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


def _taken(history: History) -> list[TrainingStep]:
    """Records with parameters of the steps in which the optimizer moved at a rate above zero."""
    return [r for r in history.records() if r.get("parameters") and not r.get("skipped") and _rate(r) > 0]


def _rate(record: TrainingStep) -> float:
    """1 where none is recorded: all steps count alike."""
    rate = record.get("learning_rate", 1.0)
    return rate if isinstance(rate, (int, float)) and math.isfinite(rate) else 1.0


def _arrived(numbers: Mapping[str, float | None]) -> bool:
    norm = numbers.get("gradient_norm")
    return norm is not None and norm > 0
