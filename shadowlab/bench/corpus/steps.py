"""The step that most cases share."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


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
