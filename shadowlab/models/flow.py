"""Rectified flow (Liu et al., 2023) between `noise` (t = 0) and `data` (t = 1).

Legend: B batch, the rest of the shape is free. The paper, LBM and diffusers write the same flow with the
roles exchanged (sigma = 1 - t); `FlowMatchEulerDiscreteScheduler` agrees step by step (tests/models/test_flow.py).
"""

import torch
from torch import Tensor

from shadowlab.checks import Check
from shadowlab.models.objective import ForwardSeen, Predict


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """x_t = t data + (1 - t) noise. noise, data: (B, ...). t: (B,) in [0, 1]; exact at both ends."""
    t = t.view(-1, *[1] * (data.ndim - 1)).to(data.dtype)
    return t * data + (1 - t) * noise


def velocity(noise: Tensor, data: Tensor) -> Tensor:
    """d x_t / d t = data - noise, (B, ...), the same at every t."""
    return data - noise


def loss_per_sample(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, (B, ...) -> (B,) float32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


def stratified_times(
    count: int, offset: float, position: int = 0, stride: int | None = None, noise_share: float = 0.0
) -> Tensor:
    """t of `count` samples that stand at `position` in a batch of `stride`, float32 (count,) in [0, 1).

    Systematic sampling: one uniform `offset` in [0, 1) per batch and equal gaps between its samples. Every t is
    uniform on [0, 1); the batch covers the interval evenly, which lowers the variance of the loss. With a
    `noise_share` in [0, 1] that share of them is 0, and the others are spread over [0, 1) in its place.
    """
    stride = stride or count
    index = torch.arange(position, position + count, dtype=torch.float64)
    t = torch.remainder(offset + index / stride, 1.0)
    if noise_share > 0:
        t = torch.where(t < noise_share, 0.0, (t - noise_share) / max(1.0 - noise_share, 1e-12))
    t = t.float()
    return torch.where(t < 1.0, t, torch.zeros_like(t))  # rounding to float32 can reach 1


def integrate(predict: Predict, noise: Tensor, num_steps: int = 1) -> Tensor:
    """Euler's method from noise (B, ...) to data with dt = 1 / num_steps.

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


class RectifiedFlow:
    """The straight line from noise to data; the model predicts its velocity. An `Objective`."""

    prediction = "velocity"
    timestep = "1000 (1 - t)"

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """`interpolate`: (B, ...), t (B,) in [0, 1]."""
        return interpolate(noise, data, t)

    def timesteps(self, t: Tensor) -> Tensor:
        """1000 (1 - t), (B,) float32: SDXL's embedding was trained on timesteps 0 .. 999 with 999 = noise."""
        return 1000.0 * (1.0 - t.float())

    def target(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """`velocity`: (B, ...)."""
        return velocity(noise, data)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the velocity, (B,) float32."""
        return loss_per_sample(prediction, self.target(noise, data, t))

    def generate(self, predict: Predict, noise: Tensor, num_steps: int) -> Tensor:
        """`integrate`: (B, ...)."""
        return integrate(predict, noise, num_steps)

    def check_ends(self, noise: Tensor, data: Tensor) -> Check:
        """The line goes from noise to data (B, ...), and so does the true velocity in one step and in eight."""
        true = self.target(noise, data, torch.zeros(len(noise), device=noise.device))
        t = torch.zeros(len(noise), device=noise.device)
        errors = [self.generate(lambda x, t: true, noise, n) - data for n in (1, 8)]
        errors += [self.noised(noise, data, t) - noise, self.noised(noise, data, t + 1) - data]
        worst = float(torch.stack(errors).abs().amax())
        scale = float(data.abs().amax()) + float(noise.abs().amax())
        limit = 16 * torch.finfo(torch.float32).eps * scale
        return Check(
            "the true velocity leads from noise to data",
            worst <= limit,
            f"error <= {limit:.1e}",
            f"{worst:.1e}",
            "the flow's direction is reversed: velocity is data - noise, t = 0 is noise, t = 1 is data",
        )

    def check_forward(self, seen: ForwardSeen) -> list[Check]:
        """t follows from where x_t lies between noise and data; timesteps and loss follow from t and the line."""
        line = (seen.data - seen.noise).double()
        t = ((seen.x_t.double() - seen.noise) * line).flatten(1).sum(dim=1) / line.square().flatten(1).sum(dim=1)
        wanted, timesteps = 1000.0 * (1.0 - t), seen.timesteps.double()
        off = float((timesteps - wanted).abs().amax())
        squares = (seen.prediction.double() - line).square()
        target_loss = squares.flatten(1).mean(dim=1)
        if seen.valid is not None:
            share = seen.valid.double().flatten(1).mean(dim=1)
            target_loss = (squares * seen.valid).flatten(1).mean(dim=1) / share
        is_the_flows = torch.isclose(
            seen.losses.double(), target_loss, rtol=1e-3, equal_nan=True
        )  # NaN is reported elsewhere
        return [
            Check(
                "timesteps are 1000 (1 - t)",
                off < (0.05 if seen.weights_dtype == torch.float32 else 5.0),  # x_t rounded to a half type
                f"{float(wanted[0]):.4g} at t = {float(t[0]):.4g}",
                f"{float(timesteps.flatten()[0]):.4g}, off by {off:.3g} at most",
                "SDXL's embedding knows 0 .. 999 with 999 = noise: unscaled or reversed, every t looks alike or "
                "backwards",
            ),
            Check(
                "the training loss is the flow's",
                bool(is_the_flows.all()),
                f"mean (velocity - (data - noise))^2 = {float(target_loss[0]):.4g}",
                f"{float(seen.losses[0]):.4g}",
                "RectifiedFlow.loss or its use in shadowlab/training/step.py compares with something else, such as the "
                "reversed velocity",
            ),
        ]
