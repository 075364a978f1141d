"""Rules of the numbers' range: room until overflow, what is not finite, and the gradient scaler."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diagnostics.health.rule import Finding, column_pieces, number, rule
from diagnostics.records import PARTS, History, Incident, LayerTable, TrainingStep
from diagnostics.verdict import read_verdict

LOW_BITS = 3.0
ALARM_BITS = 1.0
WINDOW = 16  # records with statistics that a line is fitted to
MIN_POINTS = 4
MIN_FALL = 0.5  # bits along the line over the window; less is the noise of one batch against the next
MIN_FIT = 0.5  # r^2 of the line

MIN_SCALE = 1.0
SKIPS_IN_A_ROW = 10
SKIP_WINDOW, SKIP_SHARE = 100, 0.25


@rule(
    "headroom",
    threshold=f"less than {LOW_BITS:g} bits (the largest value is within a factor of {2**LOW_BITS:g} of overflow) and "
    f"falling by {MIN_FALL:g} bits or more over the last {WINDOW} records with r^2 >= {MIN_FIT:g}; alarm below "
    f"{ALARM_BITS:g} bit",
    source="float16 ends at 65504: Micikevicius et al. 2018 (arXiv 1710.03740); layers that got there: "
    "huggingface/transformers#9295, huggingface/diffusers#9096",
    live=True,
)
def headroom(history: History) -> list[Finding]:
    """A layer whose values grow step by step overflows at a step that can be predicted.

    Headroom is log2 of the dtype's largest number over the largest magnitude: a straight line where values grow by a
    constant factor. The least-squares line over the last records with statistics says when 0 is reached. A headroom
    that is small and stays is left alone, as are bfloat16 and float32, whose range nothing healthy comes near. Of
    gradients under a gradient scaler, what the scaler can take back is added: log2 of its scale.
    """
    findings = []
    for part in PARTS:
        table = history.layers("headroom_bits", part, slice(-WINDOW, None))
        bits, steps = table.values, torch.tensor(table.steps, dtype=torch.float64)
        if part == "gradient":
            bits = bits + _scaler_room(history.measured_numbers("loss_scale")[-WINDOW:])
        findings += _falling(table, part, bits, steps)
    return findings


def _scaler_room(scales: Tensor) -> Tensor:
    """log2 of the loss scale at each record, (W,). 0 in a run without a scaler; NaN where a scaler's run lacks it."""
    return torch.zeros_like(scales) if bool(scales.isnan().all()) else scales.log2()


def _falling(table: LayerTable, part: str, bits: Tensor, steps: Tensor) -> list[Finding]:
    """bits: (layers, W). steps: (W,). Findings with the least headroom first."""
    if bits.shape[1] < MIN_POINTS or bits.shape[0] == 0:
        return []
    known = bits.isfinite()  # where all is zero the headroom is inf, where something overflowed it is not a number
    count = known.sum(1).clamp(min=1)
    zero = torch.zeros((), dtype=torch.float64)

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, zero).sum(1) / count

    x = steps - mean(steps.expand_as(bits))[:, None]
    y = bits - mean(bits)[:, None]
    slope = mean(x * y) / mean(x * x)
    fit = mean(x * y).square() / (mean(x * x) * mean(y * y))
    last = bits[:, -1]
    now = mean(bits) + slope * x[:, -1]  # on the line: one quiet batch does not move it
    span = steps[-1] - torch.where(known, steps, steps[-1]).amin(1)
    found = (count >= MIN_POINTS) & known[:, -1] & (torch.minimum(now, last) < LOW_BITS)
    found &= (-slope * span >= MIN_FALL) & (fit >= MIN_FIT)
    rows = sorted(found.nonzero().flatten().tolist(), key=last.tolist().__getitem__)
    findings = []
    step = int(steps[-1])
    for row in rows:
        least = min(float(last[row]), float(now[row]))
        overflow = max(step + 1, math.ceil(step + max(float(now[row]), 0.0) / -float(slope[row])))
        findings.append(
            Finding(
                "headroom",
                "alarm" if least < ALARM_BITS else "warning",
                step,
                f"{part} headroom {number(float(last[row]))} bits, falling by {number(-float(slope[row]))} bits a "
                f"step: overflow at about step {overflow}",
                "run this layer in bfloat16 or float32, or find what makes it grow: a learning rate that is too high, "
                "a missing norm or weight decay",
                layer=table.names[row],
                predicted_step=overflow,
                part=part,
            )
        )
    return findings


@rule(
    "non-finite",
    threshold="any NaN or Inf in loss, gradient norm, any number of an evaluation, activations, gradients, or update "
    "ratios; not: an r2 of -Inf (a constant target); gradients of a step that the gradient scaler skipped; layers that "
    "were so from their first record on, with a finite loss",
    source="skipped steps are how dynamic loss scaling works: Micikevicius et al. 2018 (arXiv 1710.03740), "
    "NVIDIA/apex#864; attention masks hold -inf by design: google/flax#4093",
    live=True,
)
def nonfinite(history: History) -> list[Finding]:
    """One value that is not finite reaches every weight with the next optimizer step.

    Of layers the first is named: in the order of execution for activations, of the backward pass for gradients.
    """
    findings = [_of_incident(record) for record in history.records("incident")]
    for kind in (history.kind, *history.evaluations):
        bad = _first_bad(history, kind)
        if bad is not None:
            record, keys = bad
            words = ", ".join(f"{key} is {record[key]}" for key in keys)
            findings.append(
                Finding(
                    "non-finite", "alarm", record["step"], f"{kind}: {words}", "go on from the last checkpoint before"
                )
            )
    for part in PARTS:
        findings += _first_bad_layer(history, part)
    return findings + _first_bad_parameter(history)


def _first_bad(history: History, kind: str) -> tuple[Mapping[str, Any], list[str]] | None:
    """The first record of a kind, of a step that was not skipped, that has such numbers, and their keys."""
    is_evaluation, skipped = kind in history.evaluations, history.skipped(kind)
    found: set[int] = set()
    for key in history.keys(kind) if is_evaluation else ("loss", "grad_norm"):
        places, values = history.points(key, kind)
        bad = ~values.isfinite() & ~skipped[places]
        if is_evaluation and key == "r2":
            bad &= values != -math.inf
        found |= set(places[bad].tolist())
    for place in sorted(found):
        record = history.records(kind)[place]
        keys = _bad_numbers(record, is_evaluation)
        if keys:
            return record, keys
    return None


def _bad_numbers(record: Mapping[str, Any], is_evaluation: bool) -> list[str]:
    """Of an evaluation every number, but for an r2 of -inf: that of a constant target."""
    keys = list(record) if is_evaluation else ["loss", "grad_norm"]
    bad = [key for key in keys if isinstance(record.get(key), float) and not math.isfinite(record[key])]
    return [key for key in bad if not is_evaluation or (key, record[key]) != ("r2", -math.inf)]


def bad_parameters(record: TrainingStep) -> list[tuple[str, str, float]]:
    """(name, `gradient_norm` or `update_ratio`, value) of what is not finite, in the order of the model; of a step that
    the gradient scaler skipped, nothing."""
    return [
        (name, key, value)
        for name, numbers in ({} if _skipped(record) else record.get("parameters", {})).items()
        for key, value in numbers.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def _first_bad_parameter(history: History) -> list[Finding]:
    there = torch.zeros(len(history.measured_steps), dtype=torch.bool)
    for piece in column_pieces(history):
        for key in ("gradient_norm", "update_ratio"):
            table = history.parameters(key, piece)
            there[piece] |= (table.present & ~table.values.isfinite()).any(0)
    columns = (there & ~history.measured_skipped).nonzero().flatten().tolist()
    bad = bad_parameters(history.measured_records()[columns[0]]) if columns else []
    if not bad:
        return []
    step = history.measured_steps[columns[0]]
    name, key, value = bad[0]
    num_others = len({other for other, _, _ in bad}) - 1
    others = f", and {num_others} more parameters have such numbers" if num_others else ""
    return [
        Finding(
            "non-finite",
            "alarm",
            step,
            f"{key} is {value}{others}",
            "explain the step: what it is born in, and why; go on from the last checkpoint before",
            parameter=name,
        )
    ]


def _of_incident(record: Incident) -> Finding:
    verdict = read_verdict(record.get("verdict"))
    if verdict is None:
        evidence, advice = "an incident whose verdict cannot be read", "see the incident's own folder, if it is there"
        return Finding("non-finite", "alarm", record["step"], evidence, advice)
    return Finding(
        "non-finite",
        "alarm",
        record["step"],
        verdict.headline(),
        verdict.fix or "read the incident's verdict",
        layer=verdict.module or None,
        parameter=None if verdict.module else verdict.parameter,
    )


def _first_bad_layer(history: History, part: str) -> list[Finding]:
    table = history.layers("num_nonfinite", part)
    if not table.steps:
        return []
    bad = table.present & (table.values != 0)  # NaN counts as bad
    if part == "gradient":
        skipped = history.measured_skipped
        bad[:, skipped] &= ~table.values[:, skipped].isfinite()
    begins_sound = history.measured_numbers("loss").isfinite()[table.present.to(torch.uint8).argmax(1)]
    by_design = (bad | ~table.present).all(1) & begins_sound  # a mask, from its first record on
    bad &= ~by_design[:, None]
    columns = bad.any(0).nonzero().flatten().tolist()
    if not columns:
        return []
    column = columns[0]
    rows = bad[:, column].nonzero().flatten().tolist()
    row = rows[0] if part == "activation" else rows[-1]
    others = f", and in {len(rows) - 1} layers after it" if len(rows) > 1 else ""
    return [
        Finding(
            "non-finite",
            "alarm",
            table.steps[column],
            f"{part}: {table.values[row, column]:.0f} values are NaN or Inf{others}",
            "explain the step: what it is born in, and why",
            layer=table.names[row],
            part=part,
        )
    ]


@rule(
    "scaler-collapse",
    threshold=f"{SKIPS_IN_A_ROW} steps skipped in a row, or a loss scale below {MIN_SCALE:g}: alarm; more than "
    f"{SKIP_SHARE:.0%} of the last {SKIP_WINDOW} steps skipped: warning",
    source="openai/guided-diffusion#50, NVIDIA/apex#715; finding the scale halves 2^16 a few times; "
    "Micikevicius et al. 2018 (arXiv 1710.03740) trained with 8 to 32768",
    live=True,
)
def scaler_collapse(history: History) -> list[Finding]:
    """A gradient scaler that halves its scale forever does not meet gradients that are too large, but a fault.

    The first steps of a run are skipped until the scale fits, and one step in about two thousand afterwards: that is
    its work. At a scale below 1 gradients are made smaller than they are, and overflow still.
    """
    findings = []
    skipped, steps = history.skipped(), history.steps()
    advice = "explain a skipped step: a value that is not finite at every scale is born in the forward or backward pass"
    streak = 0
    for step, is_skipped in zip(steps, skipped.tolist(), strict=True):
        streak = streak + 1 if is_skipped else 0
        if streak == SKIPS_IN_A_ROW:
            evidence = f"the gradient scaler skipped {SKIPS_IN_A_ROW} steps in a row"
            findings.append(Finding("scaler-collapse", "alarm", step, evidence, advice))
            break
    places, scales = history.points("loss_scale")
    low = (~(scales >= MIN_SCALE)).nonzero().flatten().tolist()
    if low:
        evidence = f"the loss scale is {number(float(scales[low[0]]))}"
        findings.append(Finding("scaler-collapse", "alarm", steps[int(places[low[0]])], evidence, advice))
    num_skipped = int(skipped[-SKIP_WINDOW:].sum())
    if not findings and len(steps) >= SKIP_WINDOW and num_skipped > SKIP_SHARE * SKIP_WINDOW:
        evidence = f"{num_skipped} of the last {SKIP_WINDOW} steps were skipped"
        findings.append(Finding("scaler-collapse", "warning", steps[-1], evidence, advice))
    return findings


def _skipped(record: Mapping[str, Any]) -> bool:
    return bool(record.get("skipped"))
