"""The noise schedule of Stable Diffusion, with and without zero terminal SNR, and its 1,000 timesteps.

Legend: B batch. k is a timestep, 0 .. 999, 999 the noisiest; t = (999 - k) / 1000, so that t = 0 is noise and t = 1 is
data, as for every objective.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # of every Stable Diffusion up to XL, `scaled_linear`
_ROUNDING = 1e-3  # of a timestep: t in float32 is that close to its k


class NoiseSchedule:
    """x_k = alpha_k data + sigma_k noise with alpha_k^2 + sigma_k^2 = 1 (Ho et al., 2020; Rombach et al., 2022).

    Args:
        zero_terminal_snr: rescale, so that k = 999 is noise alone (Lin et al., 2024, algorithm 1). Without, 7 % of the
            data is left in it, which a model learns to read though no data is there when it generates.
    """

    def __init__(self, *, zero_terminal_snr: bool) -> None:
        self.zero_terminal_snr = zero_terminal_snr
        self._alphas = _alphas(zero_terminal_snr)
        self._copies: dict[torch.device, Tensor] = {}  # a copy in each step would stop the host

    def timesteps(self, t: Tensor) -> Tensor:
        """t (B,) in [0, 1] -> k (B,) int64 in 0 .. 999; t = 0 gives 999."""
        return (NUM_TIMESTEPS - 1 - (t.double() * NUM_TIMESTEPS + _ROUNDING).floor().long()).clamp(0, NUM_TIMESTEPS - 1)

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t (B,) in [0, 1], each (B, 1, ...) to be multiplied with `like` (B, ...). At t = 1, which
        is no timestep, they are 1 and 0."""
        alphas = self._on(t.device)[self.timesteps(t)]
        alphas = torch.where(t >= 1, torch.ones_like(alphas), alphas)
        shape = (-1, *[1] * (like.ndim - 1))
        sigmas = (1 - alphas.square()).sqrt()
        return alphas.view(shape).to(like.dtype), sigmas.view(shape).to(like.dtype)

    def trailing_times(self, num_steps: int) -> list[float]:
        """t at which `num_steps` calls of the model are made, then 1: the first is at k = 999, noise, as in training.

        *Leading* steps would begin at k = 1000 - 1000 / n, told that they are not noise (Garcia et al., 2025: the cause
        of Marigold's many steps). For a number that divides 1,000 these are diffusers' `trailing` timesteps.
        """
        if not 1 <= num_steps <= NUM_TIMESTEPS:
            raise ValueError(f"num_steps must be in 1 .. {NUM_TIMESTEPS}, got {num_steps}")
        kept = [round(NUM_TIMESTEPS - i * NUM_TIMESTEPS / num_steps) - 1 for i in range(num_steps)]
        return [*((NUM_TIMESTEPS - 1 - k) / NUM_TIMESTEPS for k in kept), 1.0]

    @property
    def terminal_snr(self) -> float:
        """alpha^2 / sigma^2 at k = 999."""
        alpha = float(self._alphas[-1])
        return alpha**2 / (1 - alpha**2)

    def scheduler_config(self, prediction_type: str) -> dict[str, Any]:
        """Of a `diffusers.DDIMScheduler` that takes the same steps. prediction_type: `v_prediction` or `epsilon`."""
        return {
            "num_train_timesteps": NUM_TIMESTEPS,
            "beta_start": BETA_START,
            "beta_end": BETA_END,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "prediction_type": prediction_type,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": self.zero_terminal_snr,
        }

    def _on(self, device: torch.device) -> Tensor:
        if device == self._alphas.device:
            return self._alphas
        if device not in self._copies:
            self._copies[device] = self._alphas.to(device)
        return self._copies[device]


@cache
def _alphas(zero_terminal_snr: bool) -> Tensor:
    """Roots of the cumulative products of 1 - beta, (1000,) float64 on the CPU."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=torch.float64).square()
    alphas = (1 - betas).cumprod(dim=0).sqrt()
    if zero_terminal_snr:
        first, last = alphas[0], alphas[-1]
        alphas = (alphas - last) * first / (first - last)
    return alphas
