"""Whether an optimizer step can make non-finite values out of finite gradients.

Where it provably cannot, nothing has to be copied before the step and nothing checked after it.
"""

import math
import sys
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from diagnostics.tensors import extremes, read_any, values_of
from diagnostics.watching.snapshot import bare

LARGEST_GRADIENT = 1e15  # its square, summed over a run, is far from float32's limit
_SMALLEST_EPS = 1e-12
# Beyond these a step may overflow, or a run diverge so fast that the next one does.
_LIMITS = {"lr": 1e3, "weight_decay": 1e3, "momentum": 1.0, "alpha": 1.0, "dampening": 1.0, "momentum_decay": 1.0}
_NOT_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "step")
_WIDE = (torch.float32, torch.float64, torch.bfloat16)  # bfloat16 has float32's range
_DIVIDING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop)
_KNOWN = (*_DIVIDING, torch.optim.SGD)
# Packages whose optimizers compute in float32 on parameters of any dtype.
_COMPUTE_WIDE = ("apex", "bitsandbytes", "deepspeed", "torchao", "transformer_engine")


def why_unsafe(optimizer: Any) -> str | None:
    """Reason in words, or None where finite gradients below `LARGEST_GRADIENT` leave everything finite.

    Adam's update is at most (largest gradient of the run) / eps times the learning rate, about 1e30 here; an eps
    that the parameters' dtype rounds to zero has no such bound (float16 and 1e-8: pytorch#8860). It takes states that
    are finite, squares among them not negative.
    """
    inner = bare(optimizer)
    if type(inner) not in _KNOWN:
        return f"{type(inner).__name__} is not an optimizer whose steps are known to stay finite"
    for group in inner.param_groups:
        reason = _why_group_unsafe(type(inner), group)
        if reason is not None:
            return reason
    return None


def _why_group_unsafe(kind: type, group: dict[str, Any]) -> str | None:
    for name, limit in _LIMITS.items():
        value = group.get(name, 0.0)
        if isinstance(value, torch.Tensor):
            return f"{name} is a tensor"
        if not math.isfinite(value) or abs(value) > limit:
            return f"{name} is {value}"
    if not all(isinstance(beta, float) and 0.0 <= beta < 1.0 for beta in group.get("betas", ())):
        return f"betas are {group['betas']}"
    if group.get("centered"):
        return "a centred variance can be negative"
    dtypes = {parameter.dtype for parameter in group["params"]}
    half = [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in _WIDE]
    if half:
        return f"parameters are {half[0]}"
    if kind in _DIVIDING and not _SMALLEST_EPS <= group["eps"] < math.inf:
        return f"eps is {group['eps']}"
    return None


def states_are_sound(optimizer: Any) -> bool:
    """Whether all states are finite and averages of squares and step counts not negative. Reads on the host."""
    states = [state for state in getattr(optimizer, "state", {}).values() if isinstance(state, Mapping)]
    named = [(key, value) for state in states for key, value in state.items() if isinstance(value, torch.Tensor)]
    signed = extremes(values_of(value for key, value in named if key not in _NOT_NEGATIVE))
    squares = extremes(values_of(value for key, value in named if key in _NOT_NEGATIVE))
    bad = [(low - low) + (high - high) for low, high in [*signed, *squares]]
    return not read_any([*bad, *(low < 0 for low, _ in squares)])


def known_kernel_fault(device: torch.device) -> str | None:
    """An enabled kernel that public reports say returns NaN of finite operands on this device; None without one.

    cuDNN's attention backward on Hopper, for some lengths and masks: pytorch#196678, trl#7181.
    """
    if device.type != "cuda":
        return None
    is_enabled: bool = torch.backends.cuda.cudnn_sdp_enabled()
    if not is_enabled:
        return None
    if torch.cuda.get_device_capability(device) != (9, 0):
        return None
    return "cuDNN attention is enabled on a Hopper GPU: its backward can be NaN (pytorch#196678)"


def eps_finding(optimizer: Any) -> str | None:
    """Preflight: an eps that the dtype of its parameters rounds to zero, in words. None where there is none."""
    inner = bare(optimizer)
    for group in getattr(inner, "param_groups", []):
        eps = group.get("eps")
        if not isinstance(eps, float) or eps <= 0:
            continue
        for dtype in {parameter.dtype for parameter in group["params"]}:
            if eps_vanishes(eps, dtype):
                return f"{eps_text(eps, dtype, type(inner).__name__)}, the dtype of its parameters"
    return None


@lru_cache  # asked again and again, of the same few: no read on the host for each
def eps_vanishes(eps: float, dtype: torch.dtype) -> bool:
    """Whether a floating dtype rounds a positive eps to zero; an eps that is 0 does not vanish."""
    return eps > 0 and dtype.is_floating_point and float(torch.tensor(eps, dtype=dtype)) == 0.0


def eps_text(eps: float, dtype: torch.dtype, of: str = "") -> str:
    """That `eps_vanishes`, in words. `of`: the optimizer's name."""
    return f"eps {eps:g}{of and ' of '}{of} is 0 in {str(dtype).removeprefix('torch.')}"


def warn_of_eps(optimizer: Any, warned: set[tuple[int, str]]) -> None:
    """Warn of what `eps_finding` finds, once for each optimizer.

    Not of kernels that compute in float32 whatever the parameters are: torch's fused ones, and those of libraries.

    warned: (id of the optimizer, finding) of earlier warnings, which grows.
    """
    inner = bare(optimizer)
    is_fused = any(group.get("fused") for group in getattr(inner, "param_groups", []))
    if is_fused or type(inner).__module__.partition(".")[0] in _COMPUTE_WIDE:
        return
    finding = eps_finding(inner)
    if finding is not None and (id(inner), finding) not in warned:
        warned.add((id(inner), finding))
        text = f"{finding}: it divides by 0 where gradients are small; give it eps=1e-4 or more, or keep the weights"
        warnings.warn(f"{text} in float32 (pytorch#8860)", RuntimeWarning, stacklevel=_stacklevel())


def _stacklevel() -> int:
    """Of the first caller outside of this package, counted from `warn_of_eps`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("diagnostics."):
        frame, level = frame.f_back, level + 1
    return level
