"""What each `--precision` means, and the float32 islands inside it.

| name      | weights, optimizer | operators                  | gradient scaler |
|-----------|--------------------|----------------------------|-----------------|
| fp32      | float32            | float32, TF32 off          | no              |
| tf32      | float32            | float32, TF32 on (NVIDIA)  | no              |
| bf16      | float32            | bfloat16 autocast          | no              |
| fp16      | float32            | float16 autocast           | yes             |
| fp16-pure | float16            | float16                    | no              |

t, its embedding and that of an embedding condition, and the norms are computed in float32 under every policy, and so
are loss, EMA and VAE, which never enter autocast. One exception: under fp16-pure diffusers rounds the sinusoids of t to
float16 between the two float32 modules that make and use them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.errors import UserError
from shadowlab.settings import PrecisionName


@dataclass(frozen=True)
class Precision:
    """One row of the table above."""

    name: PrecisionName
    weights_dtype: torch.dtype
    autocast_dtype: torch.dtype | None
    scales_gradients: bool
    allows_tf32: bool

    @property
    def uses_half(self) -> bool:
        """Whether any operator computes in float16 or bfloat16."""
        return self.autocast_dtype is not None or self.weights_dtype != torch.float32

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
        if self.uses_half:
            returns = None if self.autocast_dtype else self.weights_dtype
            for module in unet.modules():
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                    _keep_float32(module, returns)
            embeddings = (getattr(unet, name, None) for name in ("time_embedding", "class_embedding"))
            for embedding in embeddings:
                if embedding is None:  # of a model without an embedding condition
                    continue
                *inner, last = [m for m in embedding.modules() if isinstance(m, nn.Linear)]
                for linear in inner:
                    _keep_float32(linear, None)
                _keep_float32(last, returns)
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


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Inside, float32 is float32: neither autocast nor TF32, whatever the run's precision."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def _keep_float32(module: Any, returns: torch.dtype | None) -> None:
    """Make a norm or linear layer compute in float32 whatever comes in and whatever its weights are.

    Args:
        returns: dtype of its result; None for float32.
    """
    compute = _FUNCTIONS[next(kind for kind in _FUNCTIONS if isinstance(module, kind))]

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            result = compute(module, x.float(), _float32(module.weight), _float32(module.bias))
        return result if returns is None else result.to(returns)

    module.forward = forward


def _float32(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float()


# Functions, not functional_call: a second call of the module would run its hooks twice.
_FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.GroupNorm: lambda norm, x, weight, bias: F.group_norm(x, norm.num_groups, weight, bias, norm.eps),
    nn.LayerNorm: lambda norm, x, weight, bias: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps),
    nn.Linear: lambda linear, x, weight, bias: F.linear(x, weight, bias),
}
