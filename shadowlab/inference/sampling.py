"""From noise to pictures, the same numbers however many are asked for.

Legend: B batch, C channels, H W pixels, h w latents (H/8).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.encoded_batch import EncodedBatch
from shadowlab.inference.memory import drawn_in_batches
from shadowlab.inference.model import LoadedModel, Weights, open_model
from shadowlab.models import predict, true_float32
from shadowlab.tasks import Guidance


@torch.no_grad()
def sample(
    model: LoadedModel, encoded: EncodedBatch, noise: Tensor, steps: int, guidance: Guidance | None = None
) -> Tensor:
    """What the model makes of noise, all samples in one batch.

    The last bits of a sample may depend on who shares its batch: the libraries below sum in other orders. Where that
    matters, samples go one by one.

    Args:
        encoded: B samples; `data` and `positions` do not matter.
        noise: (B, 4, h, w) standard normal, any device.
        steps: calls of the model, at least 1; with guidance two each.
        guidance: of the same B samples.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the CPU.
    """
    objective, device = model.task.objective, model.device

    def predicted_at(x: Tensor, t: Tensor) -> Tensor:
        found = predict(model.unet, x, objective.timesteps(t), encoded.conditions)
        if guidance is None:
            return found
        without = predict(model.unet, x, objective.timesteps(t), guidance.without.conditions)
        return without + guidance.scale * (found - without)

    with true_float32(device):
        latents = objective.generate(predicted_at, noise.to(device, torch.float32), steps)
    return model.task.decode(latents).float().cpu()


def seeded_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal float32 of one picture, (1, 4, h, w), on the CPU.

    A pipeline of diffusers draws the same with `generator=torch.Generator().manual_seed(seed)`.
    """
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed))


def load_generator(
    place: str | Path | LoadedModel,
    device: str | torch.device | None = None,
    *,
    weights: Weights = "ema",
    output_dir: str | None = None,
) -> Any:
    """The task's generator of the model at `place`; for shadows a `ShadowGenerator`:

        shadow = load_generator("runs/first").generate(photo, mask, theta=30, phi=90, size=4)

    Arguments and errors are those of `open_model`; a model that is open already is taken as it is.
    """
    model = (
        place
        if isinstance(place, LoadedModel)
        else open_model(place, device=device, weights=weights, output_dir=output_dir)
    )

    def draw(encoded: EncodedBatch, steps: int, seed: int, guidance: Guidance | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] of B encoded samples, whose seeds follow one another."""
        shape = (1, *encoded.data.shape[1:])

        def part(first: int, end: int) -> Tensor:
            noise = torch.cat([seeded_noise(shape, seed + i) for i in range(first, end)])
            rows = slice(first, end)
            aside = None if guidance is None else Guidance(guidance.scale, guidance.without.select(rows))
            return sample(model, encoded.select(rows), noise, steps, aside)

        return drawn_in_batches(part, len(encoded), model.device)

    return model.task.generator(draw)
