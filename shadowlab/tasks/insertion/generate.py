"""Objects inserted into a user's own pictures, at the size of these pictures.

Legend: H W pixels of the target, S the model's image size, h w latents (S/8).
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shadowlab.data import MASK_THRESHOLD, fit_square, given_image, unfit_square
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.settings import MAX_IMAGE_SIZE
from shadowlab.tasks.insertion.pictures import GREY, colours_of
from shadowlab.tasks.insertion.samples import InsertionBatch
from shadowlab.tasks.task import Guidance, Task

MOST_STEPS, MOST_SEED, MOST_GUIDANCE = 1000, 2**63 - 1, 100.0


class Draw(Protocol):
    """What a trained model makes of encoded samples."""

    def __call__(self, encoded: EncodedBatch, steps: int, seed: int, guidance: Guidance | None = None, /) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1] on the CPU; seeds follow one another from `seed` on."""


class InsertionGenerator:
    """What a trained insertion model makes of a target, an object and a mask.

    Args:
        task: with its VAE.
        image_size: S, what the model was trained at.
    """

    def __init__(self, task: Task[InsertionBatch], image_size: int, draw: Draw) -> None:
        self._task, self._draw, self.image_size = task, draw, image_size

    @torch.no_grad()
    def generate(
        self,
        target: Any,
        object_image: Any,
        mask: Any,
        steps: int = 1,
        seed: int = 0,
        guidance: float = 1.0,
        resolution: int | None = None,
    ) -> np.ndarray:
        """The target with the object inside the mask, (H, W, 3) float32 in [0, 1]; outside of it every pixel is the
        target's: of a file of 8 bits, its level over 255.

        Args:
            target, object_image: a path, a picture of pillow, or an array (H, W, 3 or 4), uint8 or float in [0, 1];
                of any size each. What is transparent counts as grey.
            mask: the same, grey and as large as the target: the object goes where it reaches 0.5.
            steps: calls of the model, 1 .. 1000; two for each where there is guidance.
            seed: of the noise.
            guidance: scale of classifier-free guidance (Ho and Salimans, 2022), 0 .. 100; at 1 there is none. It needs
                a model that was trained with `condition_dropout`.
            resolution: side of the square in which the model works, pixels, a multiple of 8; None: as trained.

        Raises:
            UserError: naming what is wrong.
        """
        side = self.image_size if resolution is None else resolution
        check_options(steps, seed, guidance, side)
        pixels, own = (
            colours_of(given_image(one, name, (3, 4))) for one, name in ((target, "target"), (object_image, "object"))
        )
        inside = _mask(mask, pixels)
        batch = self._batch(pixels, own, inside, side).to(self._task.vae.device)
        encoded = self._task.encode(batch)
        aside = None
        if guidance != 1.0:
            blind = InsertionBatch(**{**vars(batch), "shown": torch.zeros_like(batch.shown)})
            aside = Guidance(guidance, self._task.encode(blind))
        made = self._draw(encoded, steps, seed, aside)[0].cpu()
        whole = unfit_square(made, *pixels.shape[-2:]).clamp(0, 1)
        return torch.where(inside > 0, whole, pixels).permute(1, 2, 0).contiguous().numpy()

    def _batch(self, pixels: Tensor, own: Tensor, inside: Tensor, side: int) -> InsertionBatch:
        mask = (fit_square(inside, side, 0.0) >= MASK_THRESHOLD).float()
        if not mask.any():
            raise UserError(
                f"mask: nothing of it is left at {side} x {side}; paint a larger one, or raise --resolution"
            )
        target = fit_square(pixels, side, GREY)
        # The object that is to come is in no pixel: what lies inside is never shown to the model.
        return InsertionBatch(
            ["target"], ["object"], target[None], fit_square(own, side, GREY)[None], mask[None], torch.ones(1)
        )


def check_options(steps: Any, seed: Any, guidance: Any, resolution: Any, *, prefix: str = "") -> None:
    """Raise UserError, naming the first of them that is out of range. prefix: of their names in the message."""
    for name, value, low, high in (
        ("steps", steps, 1, MOST_STEPS),
        ("seed", seed, 0, MOST_SEED),
        ("resolution", resolution, 8, MAX_IMAGE_SIZE),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{prefix}{name} = {str(value)[:40]} is no whole number of {low} to {high}")
    if resolution % 8:
        raise UserError(f"{prefix}resolution = {resolution} is no multiple of 8")
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance <= MOST_GUIDANCE:
        raise UserError(f"{prefix}guidance = {str(guidance)[:40]} is no number of 0 to {MOST_GUIDANCE:g}")


def _mask(value: Any, pixels: Tensor) -> Tensor:
    """(1, H, W) float32 in {0, 1}."""
    image = given_image(value, "mask", (1, 3))
    if image.mode not in ("L", "1"):
        levels = np.asarray(image.convert("RGB"))
        if isinstance(value, np.ndarray | Tensor) and bool((levels == levels[..., :1]).all()):
            image = image.convert("L")  # an array (H, W)
        else:
            raise UserError(f'mask: a picture of mode {image.mode}; save it as grey (pillow: mask.convert("L"))')
    mask = torch.from_numpy(np.asarray(image.convert("L")).copy())[None].float() / 255
    mask = (mask >= MASK_THRESHOLD).float()
    if mask.shape[1:] != pixels.shape[1:]:
        sizes = f"{mask.shape[-1]} x {mask.shape[-2]}, and the target {pixels.shape[-1]} x {pixels.shape[-2]}"
        raise UserError(f"mask: {sizes}; a mask has the size of its target")
    if not mask.any():
        raise UserError("mask: it is empty (128 of 255 counts); paint white where the object goes")
    return mask
