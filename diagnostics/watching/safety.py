"""Whether an optimizer step can make non-finite values out of finite gradients.

Where it provably cannot, nothing has to be copied before the step and nothing checked after it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from diagnostics.tensors import any_bad, values_of
from diagnostics.watching.snapshot import bare

LARGEST_GRADIENT = 1e15  # its square, summed over a run, is far from float32's limit
_SMALLEST_EPS = 1e-12
# Beyond these a step may overflow, or a run diverge so fast that the next one does.
_LIMITS = {"lr": 1e3, "weight_decay": 1e3, "momentum": 1.0, "alpha": 1.0, "dampening": 1.0, "momentum_decay": 1.0}
_NOT_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "step")
_WIDE = (torch.float32, torch.float64, torch.bfloat16)  # bfloat16 has float32's range
_DIVIDING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop)
_KNOWN = (*_DIVIDING, torch.optim.SGD)


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
    if any_bad(values_of(value for _, value in named)):
        return False
    negative = [(value < 0).any() for value in values_of(value for key, value in named if key in _NOT_NEGATIVE)]
    by_device = {flag.device: [one for one in negative if one.device == flag.device] for flag in negative}
    return not any(bool(torch.stack(flags).any()) for flags in by_device.values())


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
        for parameter in group["params"]:
            if parameter.dtype.is_floating_point and float(torch.tensor(eps, dtype=parameter.dtype)) == 0.0:
                dtype = str(parameter.dtype).removeprefix("torch.")
                return f"eps {eps:g} of {type(inner).__name__} is 0 in {dtype}, the dtype of its parameters"
    return None
