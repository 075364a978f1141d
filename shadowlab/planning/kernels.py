"""Which attention kernel runs decides what is kept for the backward pass: on fake tensors, that of a GPU.

Without a GPU torch would take the CPU's kernel, or for a fake GPU the one that keeps the whole attention matrix.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from diagnostics import replaced

_WIDEST_FLASH_HEAD = 256


def cuda_attention() -> AbstractContextManager[None]:
    """Inside, scaled_dot_product_attention is the fused kernel that torch takes on a recent NVIDIA GPU."""
    return replaced(F, "scaled_dot_product_attention", _fused)


def kernel_of(dtype: torch.dtype, head_width: int = 64) -> str:
    """The kernel that torch takes on a recent NVIDIA GPU, without a mask: flash knows float16 and bfloat16 alone."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    return "flash" if is_half and head_width <= _WIDEST_FLASH_HEAD else "memory-efficient"


def _fused(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is None and kernel_of(query.dtype, query.shape[-1]) == "flash":
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        keeps_sums = torch.is_grad_enabled() and query.requires_grad
        return efficient(query, key, value, attn_mask, keeps_sums, dropout_p, is_causal, scale=scale)[0]

    return attention
