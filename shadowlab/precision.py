"""What each `--precision` means, and the float32 islands inside it.

| name      | weights, optimizer | operators                  | gradient scaler |
|-----------|--------------------|----------------------------|-----------------|
| fp32      | float32            | float32, TF32 off          | no              |
| tf32      | float32            | float32, TF32 on (NVIDIA)  | no              |
| bf16      | float32            | bfloat16 autocast          | no              |
| fp16      | float32            | float16 autocast           | yes             |
| fp16-pure | float16            | float16                    | no              |

t, the embeddings of t and of the light, and the norms are computed in float32 under every policy, and so are loss,
EMA and VAE, which never enter autocast. One exception: under fp16-pure diffusers rounds the sinusoids of t to float16
between the two float32 modules that make and use them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shadowlab.config import PrecisionName
from shadowlab.errors import UserError


@dataclass(frozen=True)
class Precision:
    """One row of the table above."""

    name: PrecisionName
    weights_dtype: torch.dtype
    autocast_dtype: torch.dtype | None
    scales_gradients: bool
    allows_tf32: bool

    def apply_to_backend(self, device: torch.device) -> None:
        """Switch TF32 on or off explicitly; torch's defaults differ between matmul and convolution.

        Raises:
            UserError: tf32 was asked for where there is no CUDA device.
        """
        if self.allows_tf32 and device.type != "cuda":
            raise UserError("--precision tf32: TF32 exists on NVIDIA GPUs only; use fp32 on this device")
        torch.backends.cuda.matmul.allow_tf32 = self.allows_tf32
        torch.backends.cudnn.allow_tf32 = self.allows_tf32

    def prepare(self, unet: nn.Module) -> nn.Module:
        """Cast the weights and put the float32 islands in place. Call before the optimizer is built."""
        if self.weights_dtype != torch.float32:
            nn.Module.to(unet, self.weights_dtype)  # diffusers' own `to` warns of what the next lines do
        if self.autocast_dtype is not None or self.weights_dtype != torch.float32:
            for name, module in unet.named_modules():
                if name in ("time_embedding", "class_embedding") or isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                    _keep_float32(module, returns=None if self.autocast_dtype else self.weights_dtype)
        return unet

    def autocast(self, device: torch.device) -> AbstractContextManager:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)


POLICIES: dict[str, Precision] = {
    policy.name: policy
    for policy in (
        Precision("fp32", torch.float32, None, False, False),
        Precision("tf32", torch.float32, None, False, True),
        Precision("bf16", torch.float32, torch.bfloat16, False, False),
        Precision("fp16", torch.float32, torch.float16, True, False),
        Precision("fp16-pure", torch.float16, None, False, False),
    )
}


def _keep_float32(module: nn.Module, returns: torch.dtype | None) -> None:
    """Make `module` compute in float32 whatever comes in; `returns` casts the result back (None: float32)."""
    original: Callable[..., Tensor] = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if next(module.parameters()).dtype == torch.float32:
                result = original(x.float(), *args, **kwargs)
            else:
                result = _upcast_call(module, original, x.float(), *args, **kwargs)
        return result if returns is None else result.to(returns)

    module.forward = forward


def _upcast_call(module: nn.Module, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    patched = module.forward
    module.forward = original
    try:
        weights = {name: parameter.float() for name, parameter in module.named_parameters()}
        return functional_call(module, weights, args, kwargs)
    finally:
        module.forward = patched
