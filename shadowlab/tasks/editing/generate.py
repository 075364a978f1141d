"""Edits of a user's own pictures, at the size of their pictures.

A picture is worked on at the size that the model was trained at, with borders that make it square. Legend: H W pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadowlab.data import (
    MASK_THRESHOLD,
    alpha_of,
    check_image_size,
    colour_levels,
    fit_square,
    given_image,
    matte_of,
    unfit_square,
)
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.errors import UserError
from shadowlab.tasks.editing.dataset import EMBEDDED, EditingDataset
from shadowlab.tasks.editing.options import EditingOptions
from shadowlab.tasks.editing.samples import EditingBatch
from shadowlab.tasks.editing.white_balance import cast, fitted_gains
from shadowlab.tasks.task import Task

MOST_STEPS, MOST_SEED = 1000, 2**63 - 1


class EditingGenerator:
    """What a trained editing model makes of a picture.

    Args:
        task: with its VAE.
        image_size: that pictures are brought to, unless another is asked for: what the model was trained at.
        draw: (B encoded samples, steps, seed) -> (B, 3, H, W) in [0, 1], of seeds that follow one another.
        options: of the configuration.
    """

    def __init__(
        self,
        task: Task[EditingBatch],
        options: EditingOptions,
        image_size: int,
        draw: Callable[[EncodedBatch, int, int], Tensor],
    ) -> None:
        self._task, self._draw, self._options, self.image_size = task, draw, options, image_size
        self.edit, self.keep_input = options.edit, options.keep_input

    @torch.no_grad()
    def generate(
        self,
        image: Any,
        mask: Any = None,
        steps: int = 1,
        seed: int = 0,
        resolution: int | None = None,
        keep_input: bool | None = None,
    ) -> np.ndarray:
        """The edited picture, (H, W, 3) float32 sRGB in [0, 1].

        Args:
            image: a path, a picture of pillow, or an array (H, W, 3 or 4), uint8 or float in [0, 1]; of 16 bits the
                upper 8 are kept.
            mask: of the same size, white is the object with its shadow; for an edit that has one.
            steps: calls of the model, 1 .. 1000.
            seed: of the noise; the same seed gives the same picture.
            resolution: side at which the model works, pixels, a multiple of 8; None: what it was trained at.
            keep_input: whether the result has of the picture what the edit does not concern; None: as configured. Of
                object-removal every pixel outside the mask is then the picture's: its level of 255, bit for bit.

        Raises:
            UserError: naming what is wrong.
        """
        side = self.image_size if resolution is None else resolution
        check_options(steps, seed, side)
        given = _levels(image).float() / 255
        covered = self._mask(mask, given)
        batch = _batch(given, covered, side)
        painted = self._draw(self._task.encode(batch.to(self._task.vae.device)), steps, seed)
        keeps = self.keep_input if keep_input is None else keep_input
        if keeps and self.edit.name == "white-balance":
            result = cast(given, fitted_gains(batch.input, painted, batch.valid)[0])
        else:
            result = unfit_square(painted[0], *given.shape[-2:])
        if keeps and self.edit.has_mask:
            result = torch.where(covered > 0, result, given)
        return result.permute(1, 2, 0).contiguous().numpy()

    def example(self) -> tuple[np.ndarray, ...]:
        """A picture that ships, as the edit takes one, (S, S, 3) uint8; and its mask, (S, S), where it has one.

        Raises:
            MissingDependencyError: this installation has no shipped set.
        """
        data = EditingDataset(EMBEDDED, self.image_size, self._options)
        sample = data[len(data) - 1]
        given = (sample.input, sample.mask) if self.edit.has_mask else (sample.input,)
        return tuple((one * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy() for one in given)

    def _mask(self, mask: Any, given: Tensor) -> Tensor:
        """(1, H, W) float32 in {0, 1}."""
        if not self.edit.has_mask:
            if mask is not None:
                raise UserError(f"mask: a model of {self.edit.name} has none; leave it out")
            return torch.ones_like(given[:1])
        if mask is None:
            raise UserError(f"mask: a model of {self.edit.name} needs one: white is the object with its shadow")
        picture = given_image(mask, "mask", (1, 3, 4))
        if (picture.height, picture.width) != tuple(given.shape[-2:]):
            raise UserError(
                f"mask: {picture.width} x {picture.height} pixels, and the picture has {given.shape[-1]} x "
                f"{given.shape[-2]}; give one of the same size"
            )
        return (matte_of(picture, "mask") >= MASK_THRESHOLD).float()


def check_options(steps: Any, seed: Any, resolution: Any, *, prefix: str = "") -> None:
    """Raise UserError, naming the first of them that is out of range. prefix: of their names in the message."""
    for name, value, low, high in (("steps", steps, 1, MOST_STEPS), ("seed", seed, 0, MOST_SEED)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{prefix}{name} = {str(value)[:40]} is no whole number of {low} to {high}")
    try:
        check_image_size(resolution)
    except UserError as error:
        raise UserError(f"{prefix}{str(error).replace('image_size', 'resolution')}") from None


def _levels(image: Any) -> Tensor:
    """(3, H, W) uint8."""
    picture = given_image(image, "image", (3, 4))
    alpha = alpha_of(picture)
    if alpha is not None and float(alpha.min()) < 1:
        raise UserError("image: it has transparent pixels, and an edit knows none; save it without alpha")
    return colour_levels(picture).contiguous()


def _batch(given: Tensor, covered: Tensor, side: int) -> EditingBatch:
    """One sample at the model's size; its target is nothing."""
    fitted = fit_square(given, side, 0.0)[None]
    valid = (fit_square(torch.ones_like(covered), side, 0.0) > 1 - 1e-3).float()[None]
    mask = (fit_square(covered, side, 0.0) > 1e-3).float()[None]
    unknown = torch.full((1, 3), float("nan"))
    return EditingBatch(["image"], ["image"], fitted, torch.zeros_like(fitted), mask, valid, unknown)
