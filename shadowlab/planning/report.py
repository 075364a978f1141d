"""The memory plan for people and for machines. GB are 10^9 bytes, as GPUs are sold; torch's own messages say GiB."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowlab.console import wrapped_text
from shadowlab.models import POLICIES, is_called_tiny
from shadowlab.planning.kernels import kernel_of
from shadowlab.planning.live_bytes import ACTIVATIONS, ITEMS, MOMENTS
from shadowlab.planning.plan import GB, MemoryPlan
from shadowlab.planning.rehearsal import ALL_MOMENTS, BACKWARD, EMA_STEP, ENCODE, FORWARD, OPTIMIZER, VALIDATION

_WIDTH, _CELL = 42, 12  # of the first column, and of each other
_NARROW_CELL = 9  # where a line has less room
_RULE = "---"  # a label that fills its column
_ACTIVATIONS_OF = {
    ENCODE: "VAE encoding",
    FORWARD: "activations in forward",
    BACKWARD: "activations in backward",
    OPTIMIZER: "temporaries of AdamW",
    EMA_STEP: "temporaries of EMA",
    VALIDATION: "weights' copy, VAE decoding: validation",
}


def format_plan(plan: MemoryPlan, gpu_bytes: int, *, width: int | None = None) -> str:
    """A table with a column for each strategy, and what its figures rest on.

    Args:
        width: columns that no line exceeds, at least 50; None for lines as long as they come.
    """
    shown = plan.strategies
    rule = (_RULE, ["-" * 8 for _ in shown])
    rows: list[tuple[str, list[str]]] = [("GB of 10^9 bytes, per process", [str(one.strategy) for one in shown]), rule]
    for moment in ALL_MOMENTS:  # first: they are the most of it where little trains, and nobody expects them
        held = [one.peak(moment).items.get(ACTIVATIONS, 0) for one in shown]
        rows.append((_activations_of(moment, plan), [_gb(size) for size in held]))
    for item in (item for item in ITEMS if item != ACTIVATIONS and any(one.most(item) for one in shown)):
        label = f"{item} of 8 bits" if item == MOMENTS and is_8_bit(plan) else item
        rows.append((label, [_gb(one.most(item)) for one in shown]))
    rows += [rule, *((f"peak in {m}", [_gb(one.peak(m).total) for one in shown]) for m in ALL_MOMENTS), rule]
    rows.append(("highest peak", [_gb(one.highest.total) for one in shown]))
    for name in dict.fromkeys(name for one in reversed(shown) for name in one.assumed):
        rows.append((f"{name} (assumed)", [_gb(one.assumed.get(name, 0)) for one in shown]))
    rows.append(("needed", [_gb(one.needed) for one in shown]))
    if plan.device == "cuda":
        rows.append((f"fits {gpu_bytes / GB:g} GB", ["yes" if one.needed <= gpu_bytes else "NO" for one in shown]))
    lines = [_row(label, values, width) for label, values in rows]
    if width is None:
        return "\n".join([_headline(plan), *lines, "", *_grounds(plan)])
    grounds = wrapped_text(" ".join(_grounds(plan)), width)
    return "\n".join([wrapped_text(_headline(plan), width), *lines, "", grounds])


def is_8_bit(plan: MemoryPlan) -> bool:
    """Whether the moments are of 8 bits."""
    return plan.config.optimizer.name == "adamw8bit"


def _activations_of(moment: str, plan: MemoryPlan) -> str:
    if moment == OPTIMIZER and is_8_bit(plan):
        return "copies of the watch, temporaries of AdamW"
    return _ACTIVATIONS_OF[moment]


def plan_document(plan: MemoryPlan, gpu_bytes: int) -> dict[str, Any]:
    """The same as JSON, in bytes."""
    return {
        "parameters": plan.num_parameters,
        "trained": plan.num_trained,
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


def format_measured(plan: MemoryPlan, measured: dict[str, int], *, width: int | None = None) -> str:
    """Plan and measurement of one process, moment by moment."""
    [one] = plan.strategies
    lines = [_row("GB of 10^9 bytes", ["plan", "measured", "ratio"], width)]
    for moment, size in measured.items():
        planned = one.peak(moment).total
        lines.append(_row(f"peak in {moment}", [_gb(planned), _gb(size), f"{planned / size:.3f}"], width))
    planned, size = one.highest.total, max(measured.values())
    lines.append(_row("the highest", [_gb(planned), _gb(size), f"{planned / size:.3f}"], width))
    return "\n".join(lines)


def _headline(plan: MemoryPlan) -> str:
    config = plan.config
    checkpointing = "with" if config.model.gradient_checkpointing else "without"
    augmented = f"augmented ({config.data.augment.text}), " if config.data.augment.is_on else ""
    some = plan.num_trained < plan.num_parameters
    trained = f", {plan.num_trained / 1e6:,.1f} M of them train" if some else ""
    side = config.data.image_size
    return (
        f"{plan.num_parameters / 1e6:,.0f} M parameters{trained}, {side} x {side}, batch "
        f"{config.train.batch_size} per process, {config.precision}, {augmented}{checkpointing} gradient "
        f"checkpointing; ddp and fsdp2: {plan.processes} processes"
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
    if _on_hub(model.weights):
        lines.append(f"{model.weights} is taken to be of the {model.architecture} architecture; nothing is downloaded.")
    if _on_hub(model.vae):
        kind = "of TAESD's" if is_called_tiny(model.vae) else "of SDXL's"
        lines.append(f"{model.vae} is taken to be an autoencoder {kind} architecture; nothing is downloaded.")
    return lines


def _on_hub(source: str) -> bool:
    return "/" in source and not Path(source).expanduser().is_dir()


def _row(label: str, values: Sequence[str], width: int | None = None) -> str:
    """One line; a label that is too long for `width` takes several, and the values stand in the last."""
    first, cell = _WIDTH, _CELL
    if width is not None and width < _WIDTH + _CELL * len(values):
        cell = _NARROW_CELL
        first = min(_WIDTH, width - cell * len(values))
    if label == _RULE:
        label = "-" * (first - 2)
    *above, last = wrapped_text(label, first - 1, hang="  ").split("\n")
    return "\n".join([*above, f"{last:<{first}}" + "".join(f"{value:>{cell}}" for value in values)])


def _gb(size: int) -> str:
    return f"{size / GB:.2f}"
