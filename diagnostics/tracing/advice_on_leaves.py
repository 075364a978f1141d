"""Advice where a value was bad before any operator: in the batch, in a weight, in a table, in a number."""

import math

import torch

from diagnostics.tracing.birth import Birth, Keeping


def on_bad_data(birth: Birth) -> str:
    """A tensor that the step was given."""
    event = birth.event
    if event.name is None and event.values.dtype is not None and event.values.shape == ():
        return (
            f"this one number is {event.values.value} before anything is computed with it: keep it finite where it is "
            "made, since 0 * inf has no value and a torch.where after the product comes too late"
        )
    if event.name is None:
        return (
            "look at where this tensor is made: where it is a table, mend the formula that fills it at this index, "
            "and give the step's tensors as `batch` to see it named"
        )
    if event.values.dtype is torch.float16 and "inf" in event.values.value:
        return (
            "it overflowed when it was cast to float16: make this input again in bfloat16 or float32 "
            "(sd-scripts#1413), and until then leave the sample out"
        )
    return (
        "check this input where it is read or cached (diffusers#7563) and repair or remove the sample, or leave its "
        "bad entries out before anything is computed with them: `torch.where(torch.isfinite(x), x, 0.0)`"
    )


def on_bad_scalar(birth: Birth) -> str:
    """A Python number, or a tensor of one."""
    if "logdet(" in birth.line:
        return (
            "the determinant is not positive, so that its logarithm is NaN: take that of its magnitude, "
            "`torch.linalg.slogdet(A).logabsdet`, as the density of a normalising flow needs it"
        )
    number = "nan" if birth.event.values.value == "nan" else "infinite"
    if birth.phase == "optimizer":
        return (
            f"a number of the optimizer is {number}: look at the learning rate and its schedule "
            "(`optimizer.param_groups[0]`), and give it a finite one"
        )
    if birth.phase == "ema":
        return f"a number of the average is {number}: look at how its decay is computed, which must lie between 0 and 1"
    return "find where this number comes from, a schedule or a loss weight, and keep it finite"


def on_bad_state(birth: Birth) -> str:
    """A parameter, gradient, buffer, attribute or optimizer state."""
    event, keeping, where = birth.event, birth.keeping, list(birth.event.values.index)
    if event.kind == "gradient":
        return (
            "an earlier step left this gradient behind: `optimizer.zero_grad()` before backward, also after a step "
            "that was skipped"
        )
    if event.kind == "optimizer state" and (event.name or "").startswith("param_groups["):
        return "look at what sets it: a schedule that divides by a number of steps that is 0, or a loss that feeds it"
    if event.kind == "optimizer state":
        return (
            "it was bad before this step: restore the last good checkpoint, or start the state of this parameter "
            "again by `optimizer.state.pop(parameter)`, and look where it was last written"
        )
    if event.kind == "parameter" and keeping is not None and keeping.is_trained:
        wrong = _wrong_number(birth, keeping)
        if wrong is not None:
            return f"{wrong}, and restore the last good checkpoint, since an update that was made with it remains"
    if event.kind == "parameter":
        if keeping is not None and not keeping.is_trained:
            return "nothing trains this weight: load it again, in float32 or bfloat16 where a cast was too narrow"
        return (
            "it was bad before this step: restore the last good checkpoint or initialise it (Automodel#1527), and "
            "look where it was last written"
        )
    if keeping is not None and keeping.is_running:
        return (
            "this running statistic was bad before the step: restore the last good checkpoint, or start it again by "
            "`module.reset_running_stats()`"
        )
    if keeping is None or not keeping.is_saved:
        return (
            "no checkpoint holds this table, so that none restores it: fill it again where it is made, also after "
            f"`to_empty` (transformers#45902), and if its formula gives this at {where}, mend that"
        )
    return (
        f"if it is a table that is computed once, mend the formula that gives this at {where}, since a checkpoint "
        "holds it as it is; if training writes it, restore the last good checkpoint"
    )


def _wrong_number(birth: Birth, keeping: Keeping) -> str | None:
    """What its optimizer will spoil a weight with again, or has done so."""
    if keeping.rate is not None and not math.isfinite(keeping.rate):
        return f"the optimizer's learning rate is {keeping.rate:g} here: mend its schedule"
    dtype = birth.event.values.dtype
    if keeping.eps is not None and dtype is not None and float(torch.tensor(keeping.eps, dtype=dtype)) == 0:
        if float(torch.tensor(keeping.eps, dtype=torch.float32)) == 0:
            return f"the optimizer's eps, {keeping.eps:g}, is zero even in float32: take AdamW's default, `eps=1e-8`"
        name = str(dtype).removeprefix("torch.")
        return (
            f"the optimizer's eps, {keeping.eps:g}, is zero in {name}, so that it divides by 0: keep float32 weights "
            "and cast by autocast (pytorch#8860)"
        )
    return None
