"""Rules of what the model is given, and of layers that are given nothing."""

import torch

from diagnostics.health.rule import PIECE, Finding, number, rule
from diagnostics.records import History

RECENT = 3  # records with statistics
MIN_USUAL = 5  # records that say what is usual
UNUSUAL = 4.0
LARGEST = 100.0


@rule(
    "input-out-of-range",
    threshold=f"in each of the last {RECENT} records with statistics an input's magnitude exceeds {LARGEST:g}, "
    f"or its standard deviation above {UNUSUAL:g} times the largest, or below 1/{UNUSUAL:g} of the smallest, of the "
    f"first half of the records ({MIN_USUAL} at least)",
    source="networks are made for inputs of about unit deviation (LeCun et al. 1998, Efficient BackProp, section 4.3); "
    "pictures of 0 to 255 and latents without their scaling factor (0.13025 of SDXL's) are beyond it",
)
def input_out_of_range(history: History) -> list[Finding]:
    """A change of range in the middle of a run is a change of the data or of their reader."""
    findings = []
    for name in history.keys(within="input_max"):
        largest, spread = history.curve(f"input_max.{name}"), history.curve(f"input_std.{name}")
        if len(largest) < RECENT:
            continue
        advice = f"look at how {name} is read and scaled"
        if all(value > LARGEST for value in largest.values[-RECENT:]):
            evidence = f"{name} reaches {number(largest.values[-1])}"
            findings.append(Finding("input-out-of-range", "warning", largest.steps[-1], evidence, advice))
            continue
        usual = [value for value in spread.values[: len(spread) // 2] if value == value]
        recent = spread.values[-RECENT:]
        if len(usual) < MIN_USUAL or len(spread) < 2 * RECENT:
            continue
        above, below = UNUSUAL * max(usual), min(usual) / UNUSUAL
        if all(value > above for value in recent) or all(value < below for value in recent):
            evidence = f"{name} has a standard deviation of {number(recent[-1])}; it was {number(usual[-1])}"
            findings.append(Finding("input-out-of-range", "warning", spread.steps[-1], evidence, advice))
    return findings


@rule(
    "layer-never-ran",
    threshold=f"in all records with statistics ({RECENT} at least): parameters of a layer are trained and have no "
    "gradient, and the layer was never called, while others were",
    source="unused parameters: torch's DistributedDataParallel(find_unused_parameters); layers lost when a model was "
    "wrapped or a branch renamed",
)
def layer_never_ran(history: History) -> list[Finding]:
    """A layer that is built and never called is not part of the model that trains. Named once, with its parameters."""
    ran = set(history.layer_names)
    columns = history.has_parameters & history.has_layers & ~history.measured_skipped & ~history.measured_tripped
    if not ran or int(columns.sum()) < RECENT:
        return []
    reached = torch.zeros(len(history.parameter_names), dtype=torch.bool)
    for piece in columns.nonzero().flatten().split(PIECE):
        gradient = history.parameters("gradient_norm", piece)
        reached |= (gradient.present & (gradient.values != 0)).any(1)
    silent: dict[str, list[str]] = {}
    spoken: set[str] = set()
    for name, is_reached in zip(history.parameter_names, reached.tolist(), strict=True):
        layer = name.rpartition(".")[0]
        (spoken.add(layer) if is_reached else silent.setdefault(layer, []).append(name))
    step = history.measured_steps[-1]
    advice = "call it in forward, or take it out of the model or of the trained parameters"
    return [
        Finding(
            "layer-never-ran",
            "warning",
            step,
            f"it was not called in any of {int(columns.sum())} records, and no gradient reached its {len(names)} "
            f"parameter{'s' if len(names) > 1 else ''}",
            advice,
            layer=layer,
        )
        for layer, names in silent.items()
        if layer and layer not in ran and layer not in spoken
    ]


def never_ran(history: History) -> frozenset[str]:
    """Names of layers that `layer-never-ran` speaks of: what else is said of their parameters is said twice."""
    return frozenset(finding.layer for finding in layer_never_ran.check(history) if finding.layer)
