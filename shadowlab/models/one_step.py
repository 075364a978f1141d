"""One step from noise, judged in pixels (Garcia et al., "Fine-tuning image-conditional diffusion models is easier than
you think", 2025): what is generated in one step is what is trained, end to end.

Legend: B batch, h w latents (H/8).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from shadowlab.checks import Check
from shadowlab.models.objective import ForwardSeen, Objective, Predict, loss_where_known


class OneStep:
    """Another objective at t = 0 alone, whose loss is the mean absolute error of the decoded picture. An `Objective`.

    x_t is the sample's noise, as it is when one generates; the paper's zeros would leave the weights of four input
    channels without a gradient. The picture is compared with the decoded latents of the target, so that what the VAE
    loses is not held against the model.

    Args:
        objective: one whose x_t at t = 0 is noise alone: v-prediction at zero terminal SNR, or rectified flow.
        decode: latents (B, 4, h, w) -> pictures (B, 3, H, W) in about [-1, 1]; gradients flow through it.
    """

    timestep = "that of t = 0"

    def __init__(self, objective: Objective, decode: Callable[[Tensor], Tensor]) -> None:
        self.objective, self._decode = objective, decode
        self.prediction = objective.prediction

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, h, w)."""
        return self.objective.noised(noise, data, torch.zeros_like(t))

    def timesteps(self, t: Tensor) -> Tensor:
        """What the model is told, (B,)."""
        return self.objective.timesteps(torch.zeros_like(t))

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """The right prediction (B, C, h, w)."""
        return self.objective.target(noise, data, torch.zeros_like(t))

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Mean absolute error of pictures in [0, 1], (B,) float32."""
        made = self._decode(self.objective.generate(lambda x, t: prediction.float(), noise, 1))
        with torch.no_grad():
            wanted = self._decode(data)
        return ((made - wanted) / 2).abs().flatten(1).mean(dim=1)

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        """Latents (B, 4, h, w). More than one step asks the model what it was never trained on."""
        return self.objective.generate(predict, noise, num_steps)

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        """That of the other objective; noise, data (B, C, h, w)."""
        return self.objective.check_ends(noise, data)

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        """x_t is noise, told so; the loss is that of pictures; and what the other objective says of its schedule."""
        t = torch.zeros(len(seen.data))
        told = float((seen.timesteps.flatten().float() - self.objective.timesteps(t)).abs().amax())
        off = float((seen.x_t.float() - seen.noise).abs().amax())
        wanted = loss_where_known(self, seen.prediction, seen.noise, seen.data, t, seen.valid).cpu()
        limit = 1e-5 if seen.weights_dtype == torch.float32 else 0.05
        own = getattr(self.objective, "check_schedule", None)
        return [
            Check(
                "the one step starts from noise",
                told == 0.0 and off <= limit,
                "x_t = noise, at the timestep of t = 0",
                f"x_t off by {off:.3g}, timestep by {told:.3g}",
                "see shadowlab/models/one_step.py",
            ),
            Check(
                "the training loss is that of pictures",
                bool(torch.isclose(seen.losses.float(), wanted, rtol=1e-2, atol=1e-4, equal_nan=True).all()),
                f"mean absolute error {float(wanted[0]):.4g}",
                f"{float(seen.losses[0]):.4g}",
                "the loss in shadowlab/training/step.py compares with something else",
            ),
            *([] if own is None else own()),
        ]
