"""Whether beauty and albedo are in the colour spaces that are declared, from the pictures alone.

A surface's light is its albedo times the light on it. Where the albedo jumps from one pixel to the next, the light
mostly does not, so that the beauty jumps by the same factor: in linear values, the logarithms of both steps are equal,
and their ratio is 1. An albedo that is sRGB and taken for linear has steps about 2.2 times too small, and so has one
that is linear and taken for sRGB steps too large.

Legend: H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.tasks.colour import ColourSpace, converted

LEAST_EDGES = 64
"""Fewer steps say nothing of a picture."""
_EDGE = 0.35  # of a natural logarithm: the albedo changes by 40 % at least
_DARKEST = 0.02  # below, what is left of 8 bits, or of a dim light, decides
_BRIGHTEST = 0.97  # above, the beauty is cut off
RIGHT = (0.62, 1.6)
"""Ratios between these are of the right spaces: 1 is right, about 2.2 and 0.45 are those of a mistake."""


@dataclass(frozen=True)
class Contrast:
    """What one picture shows."""

    ratio: float
    """Median step of the beauty over that of the albedo, in logarithms of linear values; NaN of too few steps."""
    num_edges: int

    @property
    def is_right(self) -> bool:
        """True where nothing can be said, too."""
        return not self.num_edges >= LEAST_EDGES or RIGHT[0] <= self.ratio <= RIGHT[1]


def contrast(
    beauty: Tensor, albedo: Tensor, valid: Tensor, beauty_space: ColourSpace, albedo_space: ColourSpace
) -> Contrast:
    """beauty, albedo: (3, H, W) in [0, 1], in the spaces that are declared. valid: (1, H, W) in {0, 1}."""
    light = converted(beauty.double(), beauty_space, "linear").mean(dim=0)
    surface = converted(albedo.double(), albedo_space, "linear").mean(dim=0)
    shown = (valid[0] > 0) & (light > _DARKEST) & (surface > _DARKEST) & (beauty.amax(dim=0) < _BRIGHTEST)
    ratios = []
    for dim in (0, 1):
        size = light.shape[dim] - 2  # over two pixels: the one between is a mixture
        seen = shown.narrow(dim, 0, size) & shown.narrow(dim, 2, size)
        steps = [one.clamp_min(1e-6).log() for one in (light, surface)]
        down, across = (one.narrow(dim, 2, size) - one.narrow(dim, 0, size) for one in steps)
        kept = seen & (across.abs() > _EDGE)
        ratios.append((down[kept] / across[kept]).flatten())
    found = torch.cat(ratios)
    return Contrast(float(found.median()) if len(found) else float("nan"), len(found))


def fault_of(ratio: float, beauty_space: ColourSpace, albedo_space: ColourSpace) -> str:
    """What a ratio outside of `RIGHT` most likely means, and the fix."""
    if ratio > RIGHT[1]:
        likely = "the albedo files are sRGB" if albedo_space == "linear" else "the beauty files are linear"
    else:
        likely = "the albedo files are linear" if albedo_space == "srgb" else "the beauty files are sRGB"
    return (
        f"where the albedo changes the beauty changes {ratio:.2f} times as much (1 is right, in logarithms of linear "
        f"values): beauty is declared {beauty_space} and albedo {albedo_space}; most likely {likely}. Correct "
        "colour_space in metadata.json, or task_options.beauty_space and albedo_space"
    )
