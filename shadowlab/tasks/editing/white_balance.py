"""Gains of linear light: the cast of colour that they give a picture, and what a correction must find.

A camera's white balance is a factor for each channel of linear light (von Kries). A picture of sRGB is brought to
light, multiplied, cut off at 1 and encoded again; what is cut off no gain brings back.

Legend: B batch, H W pixels.
"""

import torch
from torch import Tensor

from shadowlab.tasks.colour import to_linear, to_srgb

CLIPPED = 254.5 / 255
"""sRGB value from which on a channel counts as cut off."""
_LEAST_POWER = 1e-12
_LEAST_MEAN = 1e-6


def cast(picture: Tensor, gains: Tensor) -> Tensor:
    """The picture under gains: sRGB (..., 3, H, W) in [0, 1] to the same. gains: (..., 3), factors of linear light."""
    return to_srgb((to_linear(picture) * gains[..., None, None]).clamp(0, 1))


def fitted_gains(given: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """The gains that bring one picture nearest to another, least squares in linear light; (B, 3) float32.

    Where a channel of either is cut off it does not count; of a channel that is nowhere left, the gain is 1.

    Args:
        given, wanted: (B, 3, H, W) sRGB in [0, 1].
        counts: (B, 1, H, W) in {0, 1}.
    """
    weights = (counts * (given < CLIPPED) * (wanted < CLIPPED)).double()
    x, y = to_linear(given.double()), to_linear(wanted.double())
    power = (weights * x * x).sum(dim=(2, 3))
    found = (weights * x * y).sum(dim=(2, 3)) / power.clamp_min(_LEAST_POWER)
    return torch.where(power > _LEAST_POWER, found, torch.ones_like(found)).float()


def balanced(given: Tensor, painted: Tensor, counts: Tensor) -> Tensor:
    """The given picture under the gains that bring it nearest to the painted one; arguments as `fitted_gains`."""
    return cast(given, fitted_gains(given, painted, counts))


def grey_world(given: Tensor, counts: Tensor) -> Tensor:
    """(B, 3, H, W): red and blue scaled so that their means are green's, in linear light (Buchsbaum, 1980).

    Green stays: the gains that are to be undone leave it alone.
    """
    count = counts.flatten(2).sum(dim=2).clamp_min(1.0)
    means = ((to_linear(given) * counts).flatten(2).sum(dim=2) / count).clamp_min(_LEAST_MEAN)
    return cast(given, means[:, 1:2] / means)


def max_rgb(given: Tensor, counts: Tensor) -> Tensor:
    """(B, 3, H, W): red and blue scaled so that their largest values are green's (Land and McCann, 1971)."""
    most = (to_linear(given) * counts).flatten(2).amax(dim=2).clamp_min(_LEAST_MEAN)
    return cast(given, most[:, 1:2] / most)


def clipped_share(picture: Tensor, counts: Tensor) -> Tensor:
    """Share of pixels with a channel that is cut off, (B,) in [0, 1]. picture: (B, 3, H, W)."""
    cut = (picture >= CLIPPED).any(dim=1, keepdim=True) * counts
    return cut.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp_min(1.0)
