"""The specification of the albedo task, in torch and the standard library: of shadowlab nothing but what all
specifications share is imported.

Written from the documents (Ke et al., Marigold, CVPR 2024; Salimans and Ho, 2022; Lin et al., 2024; IEC 61966-2-1; the
rulings of this project), not from the code that it is compared with, and plainly rather than fast.

Legend: B batch, H W pixels of a file, S image size, h w latents (S/8). Levels are whole numbers as files hold them.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shadowlab.tasks.specification import Diffusion, Flow, letterboxed, linear_of, similarity, srgb_of

# Colour, of float64


def brought_to(picture: Tensor, source: str, target: str) -> Tensor:
    """(...) in [0, 1], float32."""
    if source == target:
        return picture.float()
    return (linear_of if target == "linear" else srgb_of)(picture.double()).float()


# Reading


def model_pictures(beauty: Tensor, albedo: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Beauty and albedo (3, S, S), in the model's colour space already; valid (1, S, S): 1 where all of it was 1."""
    small_mask = (letterboxed(valid, side) > 0.999).float()
    return letterboxed(beauty, side), letterboxed(albedo, side), small_mask


def latent_mask(valid: Tensor) -> Tensor:
    """(B, 1, S, S) -> (B, 1, h, w): 1 where all 64 pixels of a latent are valid."""
    blocks = valid.unflatten(2, (-1, 8)).unflatten(4, (-1, 8))
    return blocks.amin(dim=(3, 5))


# Objectives: t = 0 is noise, t = 1 is data


class Coloured:
    """Another objective on noise of all resolutions, of a strength that falls with the timestep."""

    def __init__(self, objective: Diffusion | Flow, strength: float) -> None:
        self._objective, self._strength = objective, strength
        self.places: Mapping[str, str] = {
            **objective.places,
            "noised": "shadowlab/models/multi_resolution.py, multi_resolution",
        }

    def _noise(self, noise: Tensor, t: Tensor) -> Tensor:
        shares = self._objective.timesteps(t) / 1000
        return torch.stack([coloured(noise[i], self._strength * float(share)) for i, share in enumerate(shares)])

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return self._objective.noised(self._noise(noise, t), data, t)

    def timesteps(self, t: Tensor) -> Tensor:
        return self._objective.timesteps(t)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return self._objective.loss(prediction, self._noise(noise, t), data, t)

    def generate(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        return self._objective.generate(predict, noise, steps)


def coloured(white: Tensor, strength: float) -> Tensor:
    """(C, h, w): the root of the covariance of white noise plus, for each size of blocks b = 2, 4, 8, ... that divides
    both sides, noise of deviation strength^j that is constant on blocks of b = 2^j; of variance 1 in total."""
    height, width = white.shape[-2:]
    sizes = [2**j for j in range(1, 7) if height % 2**j == 0 and width % 2**j == 0]
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    covariance = torch.eye(height * width, dtype=torch.float64)
    variance = 1.0
    for j, size in enumerate(sizes, start=1):
        block = (rows // size) * width + columns // size
        covariance += strength ** (2 * j) * (block[:, None] == block[None]).double()
        variance += strength ** (2 * j)
    values, vectors = torch.linalg.eigh(covariance / variance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return (white.flatten(1).double().cpu() @ root).reshape(white.shape).to(white)


# Metrics, of one picture each: p prediction, g truth, (3, H, W) in [0, 1]; valid (H, W) bool


def metrics(p: Tensor, g: Tensor, valid: Tensor, space: str) -> dict[str, float]:
    screen_p, screen_g = (brought_to(one, space, "srgb").double() for one in (p, g))
    light_p, light_g = (brought_to(one, space, "linear").double()[:, valid] for one in (p, g))
    error = float((screen_p - screen_g)[:, valid].square().mean())
    power = float((light_p * light_p).sum())
    scale = float((light_p * light_g).sum()) / power if power else 1.0
    return {
        "psnr": min(100.0, -10 * math.log10(error)) if error else 100.0,
        "ssim": similarity(torch.where(valid, screen_p, screen_g), screen_g, valid),
        "rmse": math.sqrt(error),
        "si_rmse": math.sqrt(float((scale * light_p - light_g).square().mean())),
    }
