"""The memory plan for people and for machines. GB are 10^9 bytes, as GPUs are sold; torch's own messages say GiB."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowlab.models import POLICIES
from shadowlab.planning.kernels import kernel_of
from shadowlab.planning.live_bytes import ACTIVATIONS, ITEMS
from shadowlab.planning.plan import GB, MemoryPlan
from shadowlab.planning.rehearsal import ALL_MOMENTS, BACKWARD, EMA_STEP, ENCODE, FORWARD, OPTIMIZER, VALIDATION

_WIDTH = 42  # of the first column
_ACTIVATIONS_OF = {
    ENCODE: "VAE encoding",
    FORWARD: "activations in forward",
    BACKWARD: "activations in backward",
    OPTIMIZER: "temporaries of AdamW",
    EMA_STEP: "temporaries of EMA",
    VALIDATION: "weights' copy, VAE decoding: validation",
}


def format_plan(plan: MemoryPlan, gpu_bytes: int) -> str:
    """A table with a column for each strategy, and what its figures rest on."""
    shown = plan.strategies
    rule = _row("-" * (_WIDTH - 2), ["-" * 8 for _ in shown])
    lines = [_headline(plan), _row("GB of 10^9 bytes, per process", [one.strategy for one in shown]), rule]
    for item in ITEMS:
        if item == ACTIVATIONS:
            for moment in ALL_MOMENTS:
                held = [one.peak(moment).items.get(ACTIVATIONS, 0) for one in shown]
                lines.append(_row(_ACTIVATIONS_OF[moment], [_gb(size) for size in held]))
        elif any(one.most(item) for one in shown):
            lines.append(_row(item, [_gb(one.most(item)) for one in shown]))
    lines += [rule, *(_row(f"peak in {m}", [_gb(one.peak(m).total) for one in shown]) for m in ALL_MOMENTS), rule]
    lines.append(_row("highest peak", [_gb(one.highest.total) for one in shown]))
    for name in dict.fromkeys(name for one in reversed(shown) for name in one.assumed):
        lines.append(_row(f"{name} (assumed)", [_gb(one.assumed.get(name, 0)) for one in shown]))
    lines += [_row("needed", [_gb(one.needed) for one in shown])]
    if plan.device == "cuda":
        lines.append(_row(f"fits {gpu_bytes / GB:g} GB", ["yes" if one.needed <= gpu_bytes else "NO" for one in shown]))
    return "\n".join([*lines, "", *_grounds(plan)])


def plan_document(plan: MemoryPlan, gpu_bytes: int) -> dict[str, Any]:
    """The same as JSON, in bytes."""
    return {
        "parameters": plan.num_parameters,
        "device": plan.device,
        "processes": plan.processes,
        "gpu_bytes": gpu_bytes if plan.device == "cuda" else None,
        "strategies": {
            one.strategy: {
                "needed": one.needed,
                "fits": one.needed <= gpu_bytes if plan.device == "cuda" else None,
                "peaks": {peak.moment: {"total": peak.total, "items": peak.items} for peak in one.peaks},
                "assumed": one.assumed,
            }
            for one in plan.strategies
        },
    }


def format_measured(plan: MemoryPlan, measured: dict[str, int]) -> str:
    """Plan and measurement of one process, moment by moment."""
    [one] = plan.strategies
    lines = [_row("GB of 10^9 bytes", ["plan", "measured", "ratio"])]
    for moment, size in measured.items():
        planned = one.peak(moment).total
        lines.append(_row(f"peak in {moment}", [_gb(planned), _gb(size), f"{planned / size:.3f}"]))
    planned, size = one.highest.total, max(measured.values())
    lines.append(_row("the highest", [_gb(planned), _gb(size), f"{planned / size:.3f}"]))
    return "\n".join(lines)


def _headline(plan: MemoryPlan) -> str:
    config = plan.config
    checkpointing = "with" if config.model.gradient_checkpointing else "without"
    return (
        f"{plan.num_parameters / 1e6:,.0f} M parameters, {config.data.image_size} x {config.data.image_size}, batch "
        f"{config.train.batch_size} per process, {config.precision}, {checkpointing} gradient checkpointing; "
        f"ddp and fsdp2: {plan.processes} processes"
    )


def _grounds(plan: MemoryPlan) -> list[str]:
    model, policy = plan.config.model, POLICIES[plan.config.precision]
    lines = [
        "exact: weights, gradients, moments, EMA, VAE weights. traced: the rest, from a whole round (encode, step,",
        "validation) of this training on tensors without memory, FSDP2 included.",
    ]
    if plan.device == "cuda":
        kernel = kernel_of(policy.autocast_dtype or policy.weights_dtype)
        lines += [
            f"taken for granted: torch's {kernel} attention in the UNet. assumed: what is marked so; workspaces are",
            "those of cuDNN and cuBLAS, and what statistics of a logged step hold.",
        ]
    if model.weights != "random" and not Path(model.weights).expanduser().is_dir():
        lines.append(f"{model.weights} is taken to be of the {model.architecture} architecture; nothing is downloaded.")
    return lines


def _row(label: str, values: Sequence[str]) -> str:
    return f"{label:<{_WIDTH}}" + "".join(f"{value:>12}" for value in values)


def _gb(size: int) -> str:
    return f"{size / GB:.2f}"
