"""Albedos of a user's own pictures, at the size of their pictures.

Working resolution, borders and the way back are those of `MarigoldIntrinsicsPipeline` in diffusers, by its own image
processor: an exported model gives the same picture.

Legend: H W pixels of the picture, N members of an ensemble, h w latents (H/8).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from torch import Tensor

from shadowlab.data import given_image, object_strips
from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.settings import MAX_IMAGE_SIZE
from shadowlab.tasks.albedo.ensemble import REDUCTIONS, Reduction, ensembled
from shadowlab.tasks.albedo.samples import AlbedoBatch
from shadowlab.tasks.colour import SPACES, ColourSpace, converted
from shadowlab.tasks.task import Task

MOST_MEMBERS, MOST_STEPS, MOST_SEED = 1000, 1000, 2**63 - 1


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a model makes of a picture."""

    albedo: np.ndarray
    """(H, W, 3) float32 in [0, 1], in the picture's colour space."""
    uncertainty: np.ndarray | None
    """(H, W, 3) float32, at least 0, in the model's colour space; None of a single prediction."""


class AlbedoGenerator:
    """What a trained albedo model makes of a picture.

    Args:
        task: with its VAE.
        image_size: longer side that pictures are brought to, unless another is asked for: what the model was trained
            at.
        space: the model's colour space.
        draw: (B encoded samples, steps, seed) -> (B, 3, H, W) in [0, 1], of seeds that follow one another.
    """

    def __init__(
        self,
        task: Task[AlbedoBatch],
        image_size: int,
        space: ColourSpace,
        draw: Callable[[EncodedBatch, int, int], Tensor],
    ) -> None:
        self._task, self._draw, self.image_size, self.space = task, draw, image_size, space

    def generate(self, image: Any, **options: Any) -> np.ndarray:
        """`estimate(image, **options).albedo`: (H, W, 3) float32 in [0, 1]."""
        return self.estimate(image, **options).albedo

    @torch.no_grad()
    def estimate(
        self,
        image: Any,
        ensemble: int = 1,
        reduction: Reduction = "median",
        steps: int = 1,
        seed: int = 0,
        resolution: int | None = None,
        space: ColourSpace = "srgb",
    ) -> Estimate:
        """The albedo of a picture, and where the members of an ensemble disagree.

        Args:
            image: a path, a picture of pillow, or an array (H, W, 3 or 4), uint8 or float in [0, 1]. What is
                transparent counts as grey.
            ensemble: N predictions of N seeds that follow one another.
            reduction: `median` or `mean` of them.
            steps: calls of the model for each, 1 .. 1000.
            seed: of the first one's noise; the same seed gives the same albedo.
            resolution: longer side at which the model works, pixels, a multiple of 8; 0: the picture's own; None: what
                it was trained at.
            space: of the picture, and of the albedo that is given back: it is declared, never guessed.

        Raises:
            UserError: naming what is wrong.
        """
        side = self.image_size if resolution is None else resolution
        check_options(ensemble, reduction, steps, seed, side, space)
        given = given_image(image, "image", (3, 4))
        pixels = (torch.cat(list(object_strips(given)), dim=1)[None] + 1) / 2
        height, width = pixels.shape[-2:]
        fitted, padding = _fitted(converted(pixels, space, self.space), side)
        members = self._draw(self._encoded(fitted, ensemble), steps, seed)
        found = ensembled(MarigoldImageProcessor.unpad_image(members, padding), reduction)
        albedo = converted(_resized(found.prediction, height, width).clamp(0, 1), self.space, space)
        spread = None if found.uncertainty is None else _levels(_resized(found.uncertainty, height, width))
        return Estimate(_levels(albedo), spread)

    def _encoded(self, picture: Tensor, count: int) -> EncodedBatch:
        """The picture (1, 3, H, W), encoded once, as `count` samples."""
        device, names = self._task.vae.device, ["image"]
        batch = AlbedoBatch(names, names, picture, picture, torch.ones_like(picture[:, :1]), self.space).to(device)
        latents = self._task.encode_part("concatenated", batch)
        height, width = latents.shape[-2:]
        parts = {
            "data": torch.zeros(count, LATENT_CHANNELS, height, width),
            "concatenated": latents.expand(count, -1, -1, -1),
            "valid": torch.ones(count, 1, height, width),
        }
        places = torch.zeros(count, dtype=torch.int64)
        return self._task.assemble([f"image {i}" for i in range(count)], places, parts, {})


def check_options(
    ensemble: Any, reduction: Any, steps: Any, seed: Any, resolution: Any, space: Any = "srgb", *, prefix: str = ""
) -> None:
    """Raise UserError, naming the first of them that is out of range. prefix: of their names in the message."""
    for name, value, low, high in (
        ("ensemble", ensemble, 1, MOST_MEMBERS),
        ("steps", steps, 1, MOST_STEPS),
        ("seed", seed, 0, MOST_SEED),
        ("resolution", resolution, 0, MAX_IMAGE_SIZE),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{prefix}{name} = {str(value)[:40]} is no whole number of {low} to {high}")
    if resolution % DOWNSCALE:
        raise UserError(
            f"{prefix}resolution = {resolution} is no multiple of {DOWNSCALE}; 0 takes the picture's own size"
        )
    if reduction not in REDUCTIONS:
        raise UserError(f"{prefix}reduction = {str(reduction)[:40]}: give {' or '.join(REDUCTIONS)}")
    if space not in SPACES:
        raise UserError(f"{prefix}space = {str(space)[:40]}: give {' or '.join(SPACES)}")


def _fitted(picture: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """(1, 3, H', W') in [0, 1], sides multiples of 8, the longer one `side`; and what was added below and right."""
    if side:
        longer, shorter = max(picture.shape[-2:]), min(picture.shape[-2:])
        if shorter * side // longer < 1:
            raise UserError(f"image: {picture.shape[-1]} x {picture.shape[-2]} pixels is too narrow; crop it")
        picture = MarigoldImageProcessor.resize_to_max_edge(picture, side, "bilinear")
    return MarigoldImageProcessor.pad_image(picture.clamp(0, 1), DOWNSCALE)


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    """(3, h, w) -> (3, H, W), bilinear."""
    return MarigoldImageProcessor.resize_antialias(picture[None], (height, width), "bilinear", is_aa=False)[0]


def _levels(picture: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) float32."""
    return picture.permute(1, 2, 0).contiguous().float().cpu().numpy()
