"""nan was born in native_group_norm, phase forward of step 5

Runs the operator alone, on the operands it had. Needs torch and operator.pt beside this file; nothing else.
Exit code 0: the operator gives a non-finite value again. 1: it does not.
"""

import sys
from pathlib import Path

import torch

call = torch.load(Path(__file__).with_name("operator.pt"), weights_only=True)
torch.set_num_threads(call["num_threads"])
operator = torch.ops
for name in "aten.native_group_norm.default".split("."):
    operator = getattr(operator, name)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def bad(value):
    inexact = [t for t in tensors(value) if t.is_floating_point() or t.is_complex()]
    return [t for t in inexact if not torch.isfinite(t).all()]


for t in tensors([call["args"], call["kwargs"]]):
    about = f"  {str(t.dtype):<15} {tuple(t.shape)}"
    if t.numel() and t.is_floating_point():
        about += f"  min {t.min().item():.6g}  max {t.max().item():.6g}"
        about += f"  smallest magnitude {t.abs().min().item():.6g}"
    print(about)
result = operator(*call["args"], **call["kwargs"])
# An operator that works in place has written to its arguments.
found = bad(result) or bad([call["args"], call["kwargs"]])
for t in found:
    wrong = t[~torch.isfinite(t)]
    print(f"aten.native_group_norm.default: {len(wrong)} of {t.numel()} values are not finite, the first is {wrong[0].item()}")
if not found:
    print("aten.native_group_norm.default: every value is finite here")
sys.exit(0 if found else 1)
