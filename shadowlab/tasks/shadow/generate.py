"""Shadows of a user's own objects, at the size of their pictures.

Legend: H W pixels of the picture, S image size of the model, h w latents (S/8).
"""

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadowlab.data import one_line, unfit_square
from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import check_light
from shadowlab.tasks.shadow.object_picture import ObjectPicture, object_picture
from shadowlab.tasks.shadow.samples import Batch
from shadowlab.tasks.task import Task

MOST_STEPS = 1000
MOST_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class PreparedObject:
    """An object as the model takes it; under any number of lights it is encoded once."""

    picture: ObjectPicture
    latents: Tensor
    """(1, 5, h, w): object latents and mask, on the model's device."""


class ShadowGenerator:
    """What a trained shadow model makes of an object and a light.

    Args:
        task: with its VAE.
        image_size: S, that the model was trained at.
        draw: (one encoded sample, steps, seed) -> (1, 1, S, S) in [0, 1].
    """

    def __init__(self, task: Task[Batch], image_size: int, draw: Callable[[EncodedBatch, int, int], Tensor]) -> None:
        self._task, self._draw, self.image_size = task, draw, image_size

    def generate(
        self,
        object_image: Any,
        mask: Any,
        theta: float,
        phi: float,
        size: float,
        steps: int = 1,
        seed: int = 0,
    ) -> np.ndarray:
        """The shadow map of an object, (H, W) float32 in [0, 1], bright = shadow.

        The picture is letterboxed to the model's square, and the map brought back to the picture's size.

        Args:
            object_image: a path, a picture of pillow, or an array (H, W, 3 or 4), uint8 or float in [0, 1].
            mask: likewise, (H, W), white = object; None: the alpha of `object_image`.
            theta: polar angle, degrees in [0, 45]. phi: azimuth, degrees in [0, 360]. size: side of the square light,
                scene units in [2, 8].
            steps: calls of the model, 1 .. 1000.
            seed: of the noise, 0 .. 2**63 - 1; the same seed gives the same map.

        Raises:
            UserError: naming what is wrong.
        """
        return self.shadow(self.prepare(object_image, mask), theta, phi, size, steps, seed)

    def prepare(self, object_image: Any, mask: Any = None) -> PreparedObject:
        """The object, encoded; arguments and errors as in `generate`. An `ObjectPicture` is taken as it is."""
        picture = object_image if isinstance(object_image, ObjectPicture) else object_picture(object_image, mask)
        image, small_mask = picture.fitted(self.image_size)
        side = self.image_size
        batch = Batch(
            ids=[picture.name],
            object_image=image[None],
            mask=small_mask[None],
            shadow=torch.zeros(1, 1, side, side),
            light=torch.zeros(1, 3),
        ).to(self._task.vae.device)
        return PreparedObject(picture, self._task.encode_part("concatenated", batch))

    def shadow(
        self, prepared: PreparedObject, theta: float, phi: float, size: float, steps: int = 1, seed: int = 0
    ) -> np.ndarray:
        """The shadow map of a prepared object; light, steps, seed, result and errors as in `generate`."""
        square = self.square(prepared, theta, phi, size, steps, seed)
        return unfit_square(square, *prepared.picture.size)[0].numpy()

    def square(
        self, prepared: PreparedObject, theta: float, phi: float, size: float, steps: int = 1, seed: int = 0
    ) -> Tensor:
        """`shadow` at the model's size, (1, S, S) float32 in [0, 1] on the CPU, with the letterbox's borders."""
        light = _number("theta", theta), _number("phi", phi), _number("size", size)
        check_light(*light, where=prepared.picture.name)
        check_steps(steps)
        check_seed(seed)
        side = self.image_size // DOWNSCALE
        latents = {"data": torch.zeros(1, LATENT_CHANNELS, side, side), "concatenated": prepared.latents}
        encoded = self._task.assemble(
            [prepared.picture.name], torch.zeros(1, dtype=torch.int64), latents, {"light": torch.tensor([light])}
        )
        return self._draw(encoded, int(steps), int(seed))[0]


def check_steps(steps: Any) -> None:
    """Raise UserError unless it is a whole number, 1 .. 1000."""
    if not _is_whole(steps) or not 1 <= steps <= MOST_STEPS:
        raise UserError(f"steps = {_shown(steps)} is no whole number of 1 to {MOST_STEPS}")


def check_seed(seed: Any) -> None:
    """Raise UserError unless it is a whole number, 0 .. 2**63 - 1."""
    if not _is_whole(seed) or not 0 <= seed <= MOST_SEED:
        raise UserError(f"seed = {_shown(seed)} is no whole number of 0 to 2**63 - 1")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise UserError(f"light {name} = {_shown(value)} is no number")
    return float(value)


def _shown(value: Any) -> str:
    """A value for a message, however large it is."""
    try:
        text = one_line(repr(value))
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}..."
