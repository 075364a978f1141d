"""Rectified flow (Liu et al., 2023) between `noise` (t = 0) and `data` (t = 1).

Legend: B batch, the rest of the shape is free. The paper, LBM and diffusers write the same flow with the
roles exchanged (sigma = 1 - t); `FlowMatchEulerDiscreteScheduler` agrees step by step (tests/test_flow.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """x_t = t data + (1 - t) noise. t: (B,) in [0, 1]; exact at both ends."""
    t = t.view(-1, *[1] * (data.ndim - 1)).to(data.dtype)
    return t * data + (1 - t) * noise


def velocity(noise: Tensor, data: Tensor) -> Tensor:
    """d x_t / d t = data - noise, the same at every t."""
    return data - noise


def loss_per_sample(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, (B, ...) -> (B,) float32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


def stratified_times(count: int, offset: float, position: int = 0, stride: int | None = None) -> Tensor:
    """t of `count` samples that stand at `position` in a batch of `stride`, float32 (count,) in [0, 1).

    Systematic sampling: one uniform `offset` in [0, 1) per batch and equal gaps between its samples. Every t is
    uniform on [0, 1); the batch covers the interval evenly, which lowers the variance of the loss.
    """
    stride = stride or count
    index = torch.arange(position, position + count, dtype=torch.float64)
    t = torch.remainder(offset + index / stride, 1.0).float()
    return torch.where(t < 1.0, t, torch.zeros_like(t))  # rounding to float32 can reach 1


def integrate(predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int = 1) -> Tensor:
    """Euler's method from noise to data with dt = 1 / num_steps.

    Args:
        predict: (x_t, t of shape (B,)) -> velocity.
        num_steps: 1 gives noise + velocity(noise, 0).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    x = noise
    for step in range(num_steps):
        t = torch.full((noise.shape[0],), step / num_steps, device=noise.device)
        x = x + predict(x, t) / num_steps
    return x
