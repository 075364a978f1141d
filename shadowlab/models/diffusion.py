"""Denoising diffusion with Stable Diffusion's schedule: v-prediction at zero terminal SNR, or epsilon.

Legend: B batch, the rest of a latent's shape is free. k timesteps, see `NoiseSchedule`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from shadowlab.checks import Check
from shadowlab.models.noise_schedule import NUM_TIMESTEPS, NoiseSchedule
from shadowlab.models.objective import ForwardSeen, Predict, loss_where_known

_MAX_SNR = 1e-12


class _Diffusion(ABC):
    """What both predictions share. An `Objective`."""

    prediction: str
    timestep = "999 - floor(1000 t)"
    schedule: NoiseSchedule

    @abstractmethod
    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The right prediction (B, ...) at t (B,)."""

    @abstractmethod
    def ends(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and data (B, ...) that a prediction (B, ...) at x_t says."""

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha data + sigma noise, (B, ...); t (B,) in [0, 1]."""
        alpha, sigma = self.schedule.scales(t, data)
        return alpha * data + sigma * noise

    def timesteps(self, t: Tensor) -> Tensor:
        """k (B,) float32: whole numbers, as the backbone was trained on."""
        return self.schedule.timesteps(t).float()

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the prediction, (B,) float32."""
        error = prediction.float() - self.target(noise, data, t).float()
        return error.square().flatten(1).mean(dim=1)

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        """DDIM (Song et al., 2021) with eta = 0 in trailing steps; the last one ends at data, (B, ...)."""
        times = self.schedule.trailing_times(num_steps)
        x = noise
        for now, then in zip(times[:-1], times[1:], strict=True):
            t, after = (torch.full(noise.shape[:1], one, device=noise.device) for one in (now, then))
            found_noise, found_data = self.ends(predict(x, t), x, t)
            alpha, sigma = self.schedule.scales(after, x)
            x = alpha * found_data + sigma * found_noise
        return x

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        """That the true prediction leads from noise (B, ...) to data in one step and in eight."""
        start = self.noised(noise, data, torch.zeros(len(noise), device=noise.device))
        ends = [self.generate(lambda x, t: self.target(noise, data, t), start, n) for n in (1, 8)]
        worst = float(torch.stack([end - data for end in ends]).abs().amax())
        limit = 1e-4 * (float(data.abs().amax()) + float(noise.abs().amax()))
        return Check(
            f"the true {self.prediction} leads from noise to data",
            worst <= limit,
            f"error <= {limit:.1e}",
            f"{worst:.1e}",
            "see shadowlab/models/diffusion.py: t = 0 is noise, t = 1 is data",
        )

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        """x_t, recomputed from the timesteps that the model was given; the loss; the end of the schedule."""
        k = seen.timesteps.double().flatten()
        t = (NUM_TIMESTEPS - 1 - k.round()) / NUM_TIMESTEPS
        whole = float((k - k.round()).abs().amax())
        off = float((seen.x_t.double() - self.noised(seen.noise.double(), seen.data.double(), t)).abs().amax())
        limit = 1e-3 if seen.weights_dtype == torch.float32 else 0.1  # x_t rounded to a half type
        losses = loss_where_known(self, seen.prediction, seen.noise, seen.data, t, seen.valid)
        return [
            Check(
                "timesteps are whole and belong to x_t",
                whole == 0.0 and off <= limit,
                f"whole numbers, x_t off by {limit:g} at most",
                f"off by {off:.3g} at k = {', '.join(f'{one:g}' for one in k.tolist()[:4])}",
                "999 is noise, 0 is data: what the model is told and what it sees are two different things",
            ),
            self._loss_check(seen, losses),
            *self.check_schedule(),
        ]

    def _loss_check(self, seen: ForwardSeen, wanted: Tensor) -> Check:
        return Check(
            "the training loss is the objective's",
            bool(
                torch.isclose(seen.losses.float(), wanted, rtol=1e-3, equal_nan=True).all()
            ),  # NaN: reported elsewhere
            f"mean ({self.prediction} - target)^2 = {float(wanted[0]):.4g}",
            f"{float(seen.losses[0]):.4g}",
            "the loss in shadowlab/training/step.py compares with something else",
        )

    def check_schedule(self) -> list[Check]:
        """What the end of the schedule must be for this prediction."""
        snr = self.schedule.terminal_snr
        return [
            Check(
                "terminal SNR is zero",
                snr <= _MAX_SNR,
                f"alpha^2 / sigma^2 <= {_MAX_SNR:g} at k = 999",
                f"{snr:.3g}",
                "rescale the schedule (NoiseSchedule, zero_terminal_snr): otherwise training shows the model some of "
                "the target at the very step from which it generates",
            )
        ]


class VPrediction(_Diffusion):
    """v = alpha noise - sigma data (Salimans and Ho, 2022) on a schedule of zero terminal SNR; Marigold v1.1."""

    prediction = "v"

    def __init__(self) -> None:
        self.schedule = NoiseSchedule(zero_terminal_snr=True)

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """v (B, ...)."""
        alpha, sigma = self.schedule.scales(t, data)
        return alpha * noise - sigma * data

    def ends(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and data, (B, ...) each."""
        alpha, sigma = self.schedule.scales(t, x_t)
        return sigma * x_t + alpha * prediction, alpha * x_t - sigma * prediction


class EpsilonPrediction(_Diffusion):
    """The model predicts the noise (Ho et al., 2020), on the schedule as Stable Diffusion was trained with: at zero
    terminal SNR the noise would be all that it is shown, and nothing would be learnt there."""

    prediction = "noise"

    def __init__(self) -> None:
        self.schedule = NoiseSchedule(zero_terminal_snr=False)

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The noise (B, ...)."""
        return noise

    def ends(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and data, (B, ...) each."""
        alpha, sigma = self.schedule.scales(t, x_t)
        return prediction, (x_t - sigma * prediction) / alpha

    def check_schedule(self) -> list[Check]:
        snr = self.schedule.terminal_snr
        return [
            Check(
                "terminal SNR is that of the backbone, not zero",
                1e-4 < snr < 1e-2,
                "alpha^2 / sigma^2 about 0.0047 at k = 999",
                f"{snr:.3g}",
                "at zero terminal SNR a predicted noise says nothing of the data: use v-prediction there",
            )
        ]
