"""Target and object in one canvas: the target first, the object below it or to its right (CatVTON, section 3.1).

Legend: B batch, C channels, h w latents of one picture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowlab.encoded_batch import DOWNSCALE
from shadowlab.tasks.insertion.options import Beside

_DIMENSION: dict[str, int] = {"height": -2, "width": -1}
FACTORS: dict[str, tuple[int, int]] = {"height": (2, 1), "width": (1, 2)}
"""How many pictures a canvas is high and wide."""


def joined(target: Tensor, beside: Tensor, how: Beside) -> Tensor:
    """(B, C, h, w) twice -> (B, C, 2h, w) or (B, C, h, 2w)."""
    return torch.cat([target, beside], dim=_DIMENSION[how])


def halves(canvas: Tensor, how: Beside) -> tuple[Tensor, Tensor]:
    """Inverse of `joined`."""
    first, second = canvas.chunk(2, dim=_DIMENSION[how])
    return first, second


def latent_mask(mask: Tensor) -> Tensor:
    """(B, 1, H, W) in {0, 1} -> (B, 1, h, w) in {0, 1}: 1 where any of a latent's 64 pixels is masked.

    Stable Diffusion's own pipelines take the nearest pixel, which loses thin masks and lets a rim of the answer stay.
    """
    return F.max_pool2d(mask.float(), DOWNSCALE)


def masked_picture(target: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same in [-1, 1] with mid grey in the mask (B, 1, H, W): what is given of it."""
    return torch.where(mask > 0, torch.zeros_like(target), target * 2.0 - 1.0)


def composited(made: Tensor, given: Tensor, mask: Tensor) -> Tensor:
    """`made` inside the mask, and outside of it `given`, bit for bit. (..., 3, H, W) twice, mask (..., 1, H, W)."""
    return torch.where(mask.to(made.device) > 0, made, given.to(made.device, made.dtype))
