"""Runs one operator alone, on the operands it had when it gave a non-finite value.

Needs torch, and operator.pt next to this file; nothing else.
Exit code 0: the operator gives a non-finite value again. 1: it does not.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def bad(value: Any) -> list[Tensor]:
    """Those of its tensors that hold NaN or Inf."""
    inexact = [t for t in tensors(value) if t.is_floating_point() or t.is_complex()]
    return [t for t in inexact if not torch.isfinite(t).all()]


def describe(t: Tensor) -> str:
    """Its dtype, shape and range in a line."""
    about = f"  {t.dtype!s:<15} {tuple(t.shape)}"
    if t.numel() and t.is_floating_point():
        about += f"  min {t.min().item():.6g}  max {t.max().item():.6g}"
        about += f"  smallest magnitude {t.abs().min().item():.6g}"
    return about


def main(file: Path) -> int:
    """Run the operator that `file` holds; returns the exit code."""
    call = torch.load(file, weights_only=True)
    torch.set_num_threads(call["num_threads"])
    name = call["operator"]  # such as aten.log.default
    operator: Any = torch.ops
    for part in name.split("."):
        operator = getattr(operator, part)
    for t in tensors([call["args"], call["kwargs"]]):
        print(describe(t))
    result = operator(*call["args"], **call["kwargs"])
    # An operator that works in place has written to its arguments.
    found = bad(result) or bad([call["args"], call["kwargs"]])
    for t in found:
        wrong = t[~torch.isfinite(t)]
        print(f"{name}: {len(wrong)} of {t.numel()} values are not finite, the first is {wrong[0].item()}")
    if not found:
        print(f"{name}: every value is finite here")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_name("operator.pt")))
