"""The step that most cases share, and what they read of it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def training_step(compute_loss: Callable[[], Tensor], optimizer: Any = None) -> Callable[[], Tensor]:
    """Forward, backward and update; returns the loss."""

    def step() -> Tensor:
        if optimizer is not None:
            optimizer.zero_grad()
        loss = compute_loss()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        return loss

    return step


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient that backward left, in the parameter's shape."""
    assert parameter.grad is not None
    return parameter.grad
