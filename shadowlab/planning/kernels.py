"""What kernels take that no operator shows on fake tensors: a GPU's attention, a CPU's convolutions.

Which attention kernel runs decides what is kept for the backward pass. Without a GPU torch would take the CPU's kernel,
or for a fake GPU the one that keeps the whole attention matrix. A CPU's convolutions lay their pictures out anew.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diagnostics import replaced

_WIDEST_FLASH_HEAD = 256
_BLOCK_CHANNELS = 8  # of oneDNN's own layout, nChw8c
_PLAIN_CHANNELS = 3  # a picture's, which oneDNN reads as they lie


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


def cpu_workspace(func: Any, args: Sequence[Any], result: Any) -> int:
    """Bytes that a CPU's convolution holds above its results while it runs; 0 of any other operator.

    As measured on AVX2. In float32 oneDNN copies what it reads and makes into its own layout where a kernel is larger
    than 1 x 1. In bfloat16 and float16, without instructions for them, torch writes every window out, and in the
    backward pass once more in float32.
    """
    if func is torch.ops.aten.convolution.default:
        picture, weight = args[0], args[1]
        made, kernel = _bytes(result), math.prod(weight.shape[2:])
        if not _by_onednn(picture):
            return _windows(picture, result, kernel) if kernel > 1 else 0
        return _blocked(result) + max(_blocked(picture), made) - made if kernel > 1 else 0
    if func is torch.ops.aten.convolution_backward.default:
        gradient, picture, weight, stride, (of_picture, of_weights, _) = args[0], args[1], args[2], args[4], args[-1]
        kernel, read = math.prod(weight.shape[2:]), _bytes(picture)
        if not _by_onednn(picture):
            windows = _windows(picture, gradient, kernel)
            return 3 * windows if of_picture else windows if kernel > 1 else 0
        copies = _blocked(picture) + _blocked(gradient) if of_weights and kernel > 1 else 0
        if not of_picture:
            return copies
        own = read if kernel == 1 else 2 * read if max(stride) > 1 else 0
        return max(own or _blocked(picture) + max(_blocked(gradient), read) - read, copies)
    return 0


def _by_onednn(tensor: Tensor) -> bool:
    if tensor.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if tensor.dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def _windows(picture: Tensor, made: Tensor, kernel: int) -> int:
    """Bytes of `kernel` numbers of each channel for each pixel made."""
    return kernel * picture.shape[0] * picture.shape[1] * math.prod(made.shape[2:]) * picture.element_size()


def _blocked(tensor: Tensor) -> int:
    """Bytes of a tensor's copy in oneDNN's layout; it has none of a picture of three channels."""
    channels = tensor.shape[1]
    if channels <= _PLAIN_CHANNELS:
        return 0
    return _bytes(tensor) * -(-channels // _BLOCK_CHANNELS) * _BLOCK_CHANNELS // channels


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
