"""Annealed multi-resolution noise (Ke et al., Marigold, 2024, section 3.2): coarse noise on top of fine noise, the more
the nearer x_t is to noise.

Marigold draws a picture of noise at each resolution. Here the same distribution is a linear function of the white noise
that a sample has anyway, so that noise stays a function of (seed, position) alone. With P_j the mean over blocks of
2^j x 2^j latents, noise of deviation s^j that is constant on each such block has the covariance (2 s)^(2j) P_j. The
means are nested projections: all resolutions together have the variance v_j = 1 + (2 s)^2 + ... + (2 s)^(2j) in the
range of P_j - P_(j+1), so that sum_j sqrt(v_j) (P_j - P_(j+1)) of white noise is distributed as they are.

Legend: B batch, C channels, h w latents.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowlab.checks import Check
from shadowlab.models.objective import ForwardSeen, Objective, Predict

_MOST_LEVELS = 6  # blocks of 64 x 64 latents at most


def multi_resolution(white: Tensor, strength: Tensor) -> Tensor:
    """White noise (B, C, h, w) -> noise of all resolutions of unit variance, (B, C, h, w).

    strength: (B,) in [0, 1]; at 0 the noise comes back as it is. Blocks are as large as divide both h and w.
    """
    side = math.gcd(*white.shape[-2:])
    levels = min(_MOST_LEVELS, (side & -side).bit_length() - 1)
    s = strength.to(white).view(-1, 1, 1, 1)
    variances = [torch.ones_like(s)]  # of the part that is finer than blocks of level j + 1
    for level in range(1, levels + 1):
        variances.append(variances[-1] + (2 * s) ** (2 * level))
    total = sum((s ** (2 * level) for level in range(1, levels + 1)), torch.ones_like(s))
    means = [white, *(_block_means(white, 2**level) for level in range(1, levels + 1))]
    coloured = means[-1] * variances[-1].sqrt()
    for level in range(levels):
        coloured = coloured + (means[level] - means[level + 1]) * variances[level].sqrt()
    return torch.where(s > 0, coloured / total.sqrt(), white)


def _block_means(white: Tensor, size: int) -> Tensor:
    coarse = F.avg_pool2d(white, size)
    return coarse.repeat_interleave(size, dim=-2).repeat_interleave(size, dim=-1)


class MultiResolutionNoise:
    """Another objective, trained on annealed multi-resolution noise. An `Objective`.

    Generation starts from white noise, as Marigold's does.

    Args:
        strength: of the noise at t = 0, in (0, 1]; it falls with the timestep that the model is told, to 0 at t = 1.
            Marigold's is 0.9.
    """

    def __init__(self, objective: Objective, strength: float) -> None:
        self.objective, self.strength = objective, strength
        self.prediction, self.timestep = objective.prediction, objective.timestep

    def noise_at(self, noise: Tensor, t: Tensor) -> Tensor:
        """What training takes for the white noise (B, C, h, w) at t (B,)."""
        return self._noise_told(noise, self.objective.timesteps(t))

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, h, w)."""
        return self.objective.noised(self.noise_at(noise, t), data, t)

    def timesteps(self, t: Tensor) -> Tensor:
        """What the model is told, (B,)."""
        return self.objective.timesteps(t)

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The right prediction (B, C, h, w)."""
        return self.objective.target(self.noise_at(noise, t), data, t)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Of each sample, (B,)."""
        return self.objective.loss(prediction, self.noise_at(noise, t), data, t)

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        """Latents (B, C, h, w)."""
        return self.objective.generate(predict, noise, num_steps)

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        """That of the other objective; noise, data (B, C, h, w)."""
        return self.objective.check_ends(noise, data)

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        """Those of the other objective, given the noise that belongs to the timesteps that the model was told."""
        return self.objective.check_forward(replace(seen, noise=self._noise_told(seen.noise, seen.timesteps)))

    def _noise_told(self, noise: Tensor, timesteps: Tensor) -> Tensor:
        return multi_resolution(noise, self.strength * timesteps.to(noise) / 1000.0)
