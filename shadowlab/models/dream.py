"""DREAM: diffusion rectification and estimation-adaptive models (Zhou et al., CVPR 2024, arXiv 2312.00210).

While it generates, a model meets its own errors, which it never saw in training. DREAM asks the model for the noise
first, without gradients, and trains on the noise that is moved by its error: with d = noise - predicted noise and
lambda = sigma_k^p (sigma_k^2 = 1 - alpha_k^2),

    x_k  = alpha_k data + sigma_k (noise + lambda d)         the input is rectified
    the right prediction is that of the noise + lambda d      and so is the target

To train the new input on the old noise would teach that the error is right.

Legend: B batch, the rest of a latent's shape is free. k timesteps, see `NoiseSchedule`.
"""

import torch
from torch import Tensor

from shadowlab.checks import Check
from shadowlab.models.diffusion import EpsilonPrediction, VPrediction
from shadowlab.models.noise_schedule import NUM_TIMESTEPS
from shadowlab.models.objective import ForwardSeen, Predict, loss_where_known

_LEAST_SIGMA = 0.02  # of k = 0 it is 0.03


class Dream:
    """Another objective, trained on rectified noise. An `Objective` with `rectified`, which the training step calls.

    Args:
        objective: of which all else is taken.
        power: p. 1 in the paper; 0 rectifies wholly at every timestep, a larger one less where noise is small.
    """

    def __init__(self, objective: EpsilonPrediction | VPrediction, power: float) -> None:
        self._objective, self.power = objective, power
        self.prediction, self.timestep, self.schedule = objective.prediction, objective.timestep, objective.schedule

    @torch.no_grad()
    def rectified(self, predict: Predict, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """noise + lambda (noise - predicted noise), (B, ...): what stands for the noise in x_t and in the target.

        predict: one call of the model, without gradients.
        """
        x_t = self.noised(noise, data, t)
        found, _ = self._objective.ends(predict(x_t, t), x_t, t)
        _, sigma = self.schedule.scales(t, noise)
        return noise + sigma**self.power * (noise - found)

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """(B, ...)."""
        return self._objective.noised(noise, data, t)

    def timesteps(self, t: Tensor) -> Tensor:
        """(B,)."""
        return self._objective.timesteps(t)

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """(B, ...), of the noise that is in x_t."""
        return self._objective.target(noise, data, t)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """(B,) float32."""
        return self._objective.loss(prediction, noise, data, t)

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        """(B, ...)."""
        return self._objective.generate(predict, noise, num_steps)

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        """noise, data: (B, ...)."""
        return self._objective.check_ends(noise, data)

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        """That input and target of the step hold the same noise, and that it is not the drawn one."""
        k = seen.timesteps.double().flatten()
        t = (NUM_TIMESTEPS - 1 - k.round()) / NUM_TIMESTEPS
        alpha, sigma = self.schedule.scales(t, seen.x_t.double())
        noise = (seen.x_t.double() - alpha * seen.data.double()) / sigma.clamp_min(_LEAST_SIGMA)
        moved = float((noise - seen.noise.double()).norm() / seen.noise.double().norm())
        valid = None if seen.valid is None else seen.valid.double()
        own = self._objective  # not this one's `loss`, which may be what is wrong
        wanted = loss_where_known(own, seen.prediction.double(), noise, seen.data.double(), t, valid)
        stale = loss_where_known(own, seen.prediction, seen.noise, seen.data, t.float(), seen.valid)
        right = bool(torch.isclose(seen.losses.double(), wanted.double(), rtol=0.02, equal_nan=True).all())
        return [
            Check(
                "DREAM: the target is that of the rectified input",
                right,
                f"loss {float(wanted[0]):.4g}, of the noise that x_t holds",
                f"{float(seen.losses[0]):.4g}; of the noise as it was drawn it would be {float(stale[0]):.4g}",
                "the corrected target must reach the loss: shadowlab/training/step.py, objective_loss",
            ),
            Check(
                "DREAM: the input is rectified",
                moved > 1e-4,
                "the noise in x_t is moved by what the model gets wrong",
                f"moved by {moved:.3g} of its norm",
                "the model is not asked first: shadowlab/training/step.py, _rectified",
            ),
            *self._objective.check_schedule(),
        ]
