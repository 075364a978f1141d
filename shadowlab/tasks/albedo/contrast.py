"""Whether beauty and albedo are in the colour spaces that are declared, and which of them is which, from the pictures
alone.

A surface's light is its albedo times the light on it. Where the albedo jumps from one pixel to the next, the light
mostly does not, so that the beauty jumps by the same factor: in linear values, the logarithms of both steps are equal,
and their ratio is 1. An albedo that is sRGB and taken for linear has steps about 2.2 times too small, and so has one
that is linear and taken for sRGB steps too large.

The edge of a shadow is in the beauty alone, and every edge of the albedo is in the beauty, too: where it is the other
way round, the two are exchanged.

Legend: H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.tasks.colour import ColourSpace, converted

LEAST_EDGES = 64
"""Fewer steps say nothing of a picture."""
_EDGE = 0.35  # of a natural logarithm: the albedo changes by 40 % at least
_NO_EDGE = 0.1  # of the same: at most this where the other picture has an edge
_DARKEST = 0.02  # below, what is left of 8 bits, or of a dim light, decides
_BRIGHTEST = 0.97  # above, the beauty is cut off
RIGHT = (0.62, 1.6)
"""Ratios between these are of the right spaces: 1 is right, about 2.2 and 0.45 are those of a mistake."""
EXCHANGED = -0.01
"""Below this `own_edges` is of an exchanged pair; of the embedded ones it is 0.003 to 0.92 (every third of 224)."""


@dataclass(frozen=True)
class Contrast:
    """What one picture shows."""

    ratio: float
    """Median step of the beauty over that of the albedo, in logarithms of linear values; NaN of too few steps."""
    num_edges: int
    own_edges: float
    """Share of the beauty's edges that the albedo does not have, less the share of the albedo's that the beauty does
    not have; 0 of too few edges."""

    @property
    def is_exchanged(self) -> bool:
        """Whether beauty and albedo look exchanged; False where nothing can be said."""
        return self.own_edges < EXCHANGED

    @property
    def is_right(self) -> bool:
        """True where nothing can be said, too."""
        return not self.num_edges >= LEAST_EDGES or RIGHT[0] <= self.ratio <= RIGHT[1]


def contrast(
    beauty: Tensor, albedo: Tensor, valid: Tensor, beauty_space: ColourSpace, albedo_space: ColourSpace
) -> Contrast:
    """beauty, albedo: (3, H, W) in [0, 1], in the spaces that are declared. valid: (1, H, W) in {0, 1}."""
    linear = [
        converted(one.double(), space, "linear").mean(dim=0)
        for one, space in zip((beauty, albedo), (beauty_space, albedo_space), strict=True)
    ]
    shown = (valid[0] > 0) & (beauty.amax(dim=0) < _BRIGHTEST)
    for values in linear:
        shown = shown & (values > _DARKEST)
    steps = [_steps(values, shown) for values in linear]
    jumps = [step.abs() > _EDGE for step in steps]
    ratios = steps[0][jumps[1]] / steps[1][jumps[1]]
    alone = [
        float((other[jump].abs() < _NO_EDGE).double().mean()) if int(jump.sum()) else 0.0
        for jump, other in zip(jumps, reversed(steps), strict=True)
    ]
    is_known = max(int(jump.sum()) for jump in jumps) >= LEAST_EDGES
    return Contrast(
        float(ratios.median()) if len(ratios) else float("nan"), len(ratios), alone[0] - alone[1] if is_known else 0.0
    )


def _steps(values: Tensor, shown: Tensor) -> Tensor:
    """Logarithms of the steps down and across over two pixels, as the one between is a mixture; of those that are
    shown, (n,)."""
    logs, found = values.clamp_min(1e-6).log(), []
    for dim in (0, 1):
        size = values.shape[dim] - 2
        seen = shown.narrow(dim, 0, size) & shown.narrow(dim, 2, size)
        found.append((logs.narrow(dim, 2, size) - logs.narrow(dim, 0, size))[seen])
    return torch.cat(found)


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


def exchanged_text(found: float) -> str:
    """What `own_edges` below `EXCHANGED` means, and the fix."""
    return (
        "the albedo has edges that the beauty has not, and fewer of the beauty's are its own (difference "
        f"{found:+.2f} of the edges, positive is right): beauty and albedo are exchanged; exchange the two folders, or "
        "the two columns of the list"
    )
