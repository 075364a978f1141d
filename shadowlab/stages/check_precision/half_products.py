"""Products of half-precision tensors on a CPU as a GPU makes them: float32 sums, rounded once.

A CPU without half-precision arithmetic multiplies such matrices element by element: check-precision of SDXL in bfloat16
did not end within half an hour there, and takes minutes in float32. Attention's own kernel is left as it is.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_HALF = (torch.float16, torch.bfloat16)
_PRODUCTS = (
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
    torch.ops.aten.convolution,
    torch.ops.aten.convolution_backward,
)


class Float32Products(TorchDispatchMode):
    """Inside `with Float32Products():` matrix products and convolutions of float16 or bfloat16 tensors are summed in
    float32, forward and backward; what they return has the dtype they were given."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_product = func.overloadpacket in _PRODUCTS
        dtype = next(one.dtype for one in args if isinstance(one, Tensor)) if is_product else None
        if dtype not in _HALF:
            return func(*args, **(kwargs or {}))
        result = func(*tree_map_only(Tensor, Tensor.float, args), **(kwargs or {}))
        return tree_map_only(Tensor, lambda one: one.to(dtype), result)
