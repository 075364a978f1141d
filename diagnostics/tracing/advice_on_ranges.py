"""Advice where a number is too large or too small for its dtype."""

import math

import torch

from diagnostics.tracing.advice_on_domains import SOFTMAX, stable_logarithm
from diagnostics.tracing.birth import Birth, method, number

_EIGHT_BITS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
_DOWN = "bring what goes into it down to about 1, as in `x / x.detach().abs().amax().clamp(min=1)` or by a LayerNorm"


def on_overflow(birth: Birth) -> str:
    """The result is beyond the largest number."""
    op, phase, dtype = birth.op, birth.phase, birth.dtype
    if dtype in _EIGHT_BITS:
        return _on_eight_bits(dtype)
    if phase == "unscale":
        return _on_scale(birth)
    if phase == "clip" and not birth.is_half and op in ("mul", "add", "div"):
        return "gradients are multiplied beyond this dtype here: make the loss smaller, or multiply by less"
    if phase == "clip" and op not in ("mul", "add", "div"):
        return (
            "the norm of the gradients exceeds this dtype: limit each of them first by "
            "`torch.nn.utils.clip_grad_value_(parameters, 1.0)`, take the norm in float64, or make the loss smaller "
            "(pytorch#46849)"
        )
    if phase == "ema" or (phase == "optimizer" and op == "to_copy"):
        return "average in float32, and cast a copy, never the average itself (ultralytics#24615)"
    if phase == "optimizer":
        return _on_update(birth)
    if op in ("exp", "exp2", "expm1") or birth.node == "exp":
        return on_exponential(birth)
    if birth.is_half:
        return _on_half(birth)
    if op in ("div", "true_divide", "reciprocal", "rsqrt") and phase != "backward":
        return _on_small_denominator(birth)
    if phase == "backward" and birth.node in ("div", "reciprocal", "rsqrt", "sqrt", "pow", "log"):
        return (
            f"the gradient of {birth.node} is beyond this dtype because its operand is next to 0: keep that away from "
            "0 by `.clamp(min=1e-6)` before it, or bound the exponent where it is an exp"
        )
    return _on_wide(birth)


def _on_eight_bits(dtype: torch.dtype) -> str:
    name, limit = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    return (
        f"{name} ends at {limit:g}, and the cast does not saturate: `x.clamp(-{limit:g}, "
        f"{limit:g}).to(torch.{name})`, or scale before it by `x * ({limit:g} / x.abs().amax())` and back after the "
        "product"
    )


def _on_scale(birth: Birth) -> str:
    if "non_finite_check" in birth.op:
        return (
            "the gradients without their scale are beyond this dtype: divide the loss by a constant, or lower what "
            "it is multiplied by"
        )
    return (
        "the inverse of the loss scale is beyond float32, for it has collapsed in a long run of skipped steps: find "
        "the NaN that made the scaler skip (guided-diffusion#50), and go on with a new `torch.amp.GradScaler()`"
    )


def _on_update(birth: Birth) -> str:
    half = "keep parameters and optimizer state in float32, as autocast does, "
    if birth.op in ("add", "sub", "addcdiv", "div") and not birth.is_half:
        eps = ", and give this optimizer an eps that is not so small, `eps=1e-8`" if "div" in birth.op else ""
        return (
            "the update itself, learning rate times gradient, is beyond this dtype: lower the learning rate, or "
            f"limit the gradients by `torch.nn.utils.clip_grad_value_(parameters, 1.0)`{eps}"
        )
    if birth.op in ("add", "sub", "addcdiv") and birth.is_half:
        return (
            f"the update itself, learning rate times gradient, is beyond this dtype: {half}and lower the learning rate"
        )
    if birth.is_half:
        return f"squares of these gradients are beyond this dtype: {half}and clip gradients"
    return (
        "the gradients are so large that their squares are beyond this dtype: limit them before the optimizer's step "
        "by `torch.nn.utils.clip_grad_value_(parameters, 1.0)` (a norm would overflow, too), and make the loss "
        "smaller (DeepSpeed#8035)"
    )


def on_exponential(birth: Birth) -> str:
    """exp of a large number: the stable form of what follows, else a bound."""
    after = birth.after
    if {"sum", "div"} <= after or "softmax" in after:
        log = ", and `F.log_softmax(x, -1)` in the place of its logarithm" if "log" in after else ""
        return f"{SOFTMAX}{log}"
    if "log" in after and "sum" in after:
        return "take all in one: `torch.logsumexp(x, -1)` is log(sum(exp(x)))"
    if "log" in after or "log1p" in after:
        return "take both in one: `F.softplus(x)` is log(1 + exp(x))"
    most = 5 if birth.is_half else 20
    x = birth.called("self", "x")
    return (
        f"bound the exponent, as `torch.exp({method(x, f'clamp(max={most})')})` does, for every exp that it goes "
        "into; where the exp is part of a softmax or a logarithm, take `torch.softmax`, `torch.logsumexp` or "
        "`F.softplus` for both"
    )


def _on_small_denominator(birth: Birth) -> str:
    d = birth.called("other" if birth.op in ("div", "true_divide") else "self", "d")
    d = d if len(d) <= 24 else "d"
    least = number(max(birth.least, 1e-6))
    return (
        f"the denominator is next to 0: keep it away from there, `torch.where({d}.abs() < {least}, {least}, {d})`, or "
        f"by `{method(d, f'clamp(min={least})')}` where it is never negative"
    )


def _on_half(birth: Birth) -> str:
    if birth.op == "to_copy" and birth.phase == "backward":
        return (
            "the gradient does not fit float16: keep this activation in float32 or bfloat16, or make the loss smaller"
        )
    if birth.op == "to_copy":
        return "the value does not fit float16: do not cast here, or use bfloat16 (transformers#9295)"
    if birth.phase == "data":
        return "compute this in float32 or bfloat16, as SDXL's VAE needs it (sd-scripts#952)"
    return (
        "compute this in float32 or bfloat16 (`torch.autocast(device, dtype=torch.bfloat16)`, weights in float32), "
        "whose range is 5e33 times that of float16 (transformers#9295)"
    )


def _on_wide(birth: Birth) -> str:
    operands, value = birth.judgement.operands, birth.judgement.operands.get("in float64")
    info = torch.finfo(birth.dtype) if birth.dtype.is_floating_point else torch.finfo(torch.float32)
    fits = isinstance(value, float) and math.isfinite(value)
    if "scaled_dot_product" in birth.op:
        return f"the product of queries and keys is beyond this dtype: normalise both, or {_DOWN}"
    if "on the way" in operands and birth.dtype is not torch.float64:
        return (
            "the result fits this dtype, only a square or sum on the way does not: compute this one operator in "
            f"float64, as in `x.double()` before and `.to(x.dtype)` after it, or {_DOWN}"
        )
    start = f"float64 would hold {value:.3g}, but what follows would have to stay in it" if fits else ""
    if not fits or birth.dtype is torch.float64:
        start = f"values have grown beyond {info.max:.1e}"
    if birth.phase == "backward":
        return f"{start}: make the loss smaller, and {_DOWN}"
    return f"{start}: {_DOWN}; where they grew during training, lower the learning rate, warm up or clip gradients"


def on_underflow(birth: Birth) -> str:
    """A number that is not zero was rounded to zero."""
    least, op = number(birth.least), birth.op
    vanished = [one for one in birth.added if _vanishes(one)]
    if birth.phase == "optimizer" and vanished:
        return (
            f"the optimizer's eps, {min(vanished, key=abs):g}, is zero in float32, too, so that no other precision "
            "helps: take one that float32 can hold next to a gradient's square (AdamW's default is 1e-8)"
        )
    if birth.phase == "optimizer":
        return (
            "the optimizer's eps is zero in this dtype: keep float32 master weights (bf16 or fp16 autocast instead "
            "of half parameters); an eps that float16 can hold is finite, but distorts the update (pytorch#8860)"
        )
    if vanished:
        return f"{min(vanished, key=abs):g} is zero in float32, too: add one whose inverse it can hold, such as {least}"
    if op in ("log", "log2", "log10", "log1p"):
        stable = stable_logarithm(birth)
        x = birth.called("self", "x")
        return stable or f"keep its operand above 0: `torch.{op}({method(x, f'clamp(min={least})')})`"
    if "exp" in birth.making.ops[:3] and "sum" in birth.making.ops[:2]:
        return SOFTMAX
    if birth.making.ops[:1] == ("exp",):
        return (
            "the denominator is an exp that vanished: bound its exponent, as in "
            "`log_temperature.clamp(min=-4.6).exp()`, which is no less than 0.01"
        )
    if birth.is_half:
        return (
            f"the epsilon, or a square, is zero in float16: compute this in float32 (`x.float()`), or add {least} in "
            "the place of the epsilon"
        )
    return (
        f"an operand vanished in this dtype: add {least} to it before this operator (less would overflow in the "
        "inverse or its derivative), or compute this in float64"
    )


def _vanishes(value: float) -> bool:
    """Whether float32 rounds it to zero, or it is zero."""
    return float(torch.tensor(value, dtype=torch.float32)) == 0.0
