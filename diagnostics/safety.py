"""Whether an optimizer step can make non-finite values out of finite gradients.

Where it provably cannot, nothing has to be copied before the step and nothing checked after it.
"""

import math
from typing import Any

import torch

LARGEST_GRADIENT = 1e15  # its square, summed over a run, is far from float32's limit
_SMALLEST_EPS = 1e-12
_LARGEST_RATE = 1e3
_WIDE = (torch.float32, torch.float64, torch.bfloat16)  # bfloat16 has float32's range
_DIVIDING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop)
_KNOWN = (*_DIVIDING, torch.optim.SGD)


def why_unsafe(optimizer: Any) -> str | None:
    """Reason in words, or None where finite gradients below `LARGEST_GRADIENT` leave everything finite.

    Adam's update is at most (largest gradient of the run) / eps times the learning rate, about 1e30 here; an eps
    that the parameters' dtype rounds to zero has no such bound (float16 and 1e-8: pytorch#8860).
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if type(inner) not in _KNOWN:
        return f"{type(inner).__name__} is not an optimizer whose steps are known to stay finite"
    for group in inner.param_groups:
        rate = group["lr"]
        if isinstance(rate, torch.Tensor):
            return "the learning rate is a tensor"
        if not math.isfinite(rate) or abs(rate) > _LARGEST_RATE:
            return f"the learning rate is {rate}"
        dtypes = {parameter.dtype for parameter in group["params"]}
        half = [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in _WIDE]
        if half:
            return f"parameters are {half[0]}"
        if type(inner) in _DIVIDING:
            eps = group["eps"]
            if not math.isfinite(eps) or eps < _SMALLEST_EPS:
                return f"eps is {eps}"
    return None


def known_kernel_fault(device: torch.device) -> str | None:
    """An enabled kernel that public reports say returns NaN of finite operands on this device; None without one.

    cuDNN's attention backward on Hopper, for some lengths and masks: pytorch#196678, trl#7181.
    """
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        return None
    if torch.cuda.get_device_capability(device) != (9, 0):
        return None
    return "cuDNN attention is enabled on a Hopper GPU: its backward can be NaN (pytorch#196678)"


def eps_finding(optimizer: Any) -> str | None:
    """Preflight: an eps that the dtype of its parameters rounds to zero, in words. None where there is none."""
    inner = getattr(optimizer, "optimizer", optimizer)
    for group in getattr(inner, "param_groups", []):
        eps = group.get("eps")
        if not isinstance(eps, float) or eps <= 0:
            continue
        for parameter in group["params"]:
            if parameter.dtype.is_floating_point and float(torch.tensor(eps, dtype=parameter.dtype)) == 0.0:
                dtype = str(parameter.dtype).removeprefix("torch.")
                return f"eps {eps:g} of {type(inner).__name__} is 0 in {dtype}, the dtype of its parameters"
    return None
