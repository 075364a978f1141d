"""What a model learns to predict, and how a picture is made from its predictions.

Legend: B batch, the rest of a latent's shape is free. t = 0 is noise and t = 1 is data, for every objective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shadowlab.checks import Check

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> the model's prediction (B, ...)."""


@dataclass(frozen=True, eq=False)
class ForwardSeen:
    """One forward pass as hooks on the model saw it, not as the step says that it was; all on the CPU."""

    x_t: Tensor
    """(B, 4, h, w), what the model was given."""
    timesteps: Tensor
    """(B,), what the model was given."""
    prediction: Tensor
    """(B, 4, h, w), what the model gave."""
    losses: Tensor
    """(B,) float32, of the training step."""
    noise: Tensor
    """(B, 4, h, w) float32, that belongs to these samples."""
    data: Tensor
    """(B, 4, h, w) float32 latents of the target."""
    weights_dtype: torch.dtype
    valid: Tensor | None = None
    """(B, 1, h, w), as `EncodedBatch.valid`; None: 1 everywhere."""


class Objective(Protocol):
    """How x_t is made, what is predicted, what the loss is, and how one generates."""

    prediction: str
    """What the model predicts, for people: `velocity`."""
    timestep: str
    """How `timesteps` follow from t, for people: `1000 (1 - t)`."""

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """x_t (B, ...) between `noise` and `data` (B, ...) at t (B,) in [0, 1]."""

    def timesteps(self, t: Tensor) -> Tensor:
        """What the model is given for t (B,): (B,) float32 in [0, 1000)."""

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The right prediction (B, ...) at t (B,)."""

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The loss of each sample, (B,) float32."""

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        """Latents (B, ...) from noise (B, ...) in `num_steps` calls of the model."""

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        """That the right predictions lead from noise to data (B, ...)."""

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        """That timesteps and loss are this objective's, recomputed from what the hooks saw."""


def loss_where_known(
    objective: Objective, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor, valid: Tensor | None
) -> Tensor:
    """The objective's loss of each sample over the latents whose target is known, (B,) float32.

    Elsewhere the right prediction stands in for the model's: it costs nothing there, and nothing is learnt. A weight
    other than 1 multiplies the squared error there, for which the error is multiplied by its root.

    Args:
        prediction, noise, data: (B, 4, h, w). t: (B,) in [0, 1].
        valid: (B, 1, h, w), at least 0, as `EncodedBatch.valid`; None: 1 everywhere. Where no latent of a sample is
            known, its loss is 0.
    """
    if valid is None:
        return objective.loss(prediction, noise, data, t)
    right = objective.target(noise, data, t).to(prediction.dtype)
    weighted = torch.where(valid == 1, prediction, right + valid.sqrt() * (prediction - right))
    losses = objective.loss(torch.where(valid > 0, weighted, right), noise, data, t)
    share = valid.flatten(1).mean(dim=1)
    return losses / torch.where(share > 0, share, torch.ones_like(share))
