"""Two colour spaces of the same primaries: sRGB as screens and most files have it, and light itself (IEC 61966-2-1).

Which one a picture is in is declared and never guessed; a picture is converted once, where it is read.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from shadowlab.checks import Check

ColourSpace = Literal["srgb", "linear"]
"""`srgb`: encoded by the standard's curve. `linear`: proportional to light."""
SPACES: tuple[ColourSpace, ...] = get_args(ColourSpace)

_ROUND_TRIP = 1e-6
_KNEE_SRGB, _KNEE_LINEAR = 0.04045, 0.0031308  # below, the curve is a line of slope 12.92


def to_linear(srgb: Tensor) -> Tensor:
    """sRGB (...) in [0, 1] to linear (...) in [0, 1], of the same dtype; its gradient is finite everywhere."""
    curve = ((srgb.clamp_min(_KNEE_SRGB) + 0.055) / 1.055) ** 2.4
    return torch.where(srgb <= _KNEE_SRGB, srgb / 12.92, curve)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear (...) in [0, 1] to sRGB (...) in [0, 1], of the same dtype; its gradient is finite everywhere."""
    curve = 1.055 * linear.clamp_min(_KNEE_LINEAR) ** (1 / 2.4) - 0.055  # clamped: at 0 the root's slope is infinite
    return torch.where(linear <= _KNEE_LINEAR, linear * 12.92, curve)


def converted(picture: Tensor, source: ColourSpace, target: ColourSpace) -> Tensor:
    """A picture (...) in [0, 1] that is in `source`, in `target`; the same tensor where they are equal."""
    if source == target:
        return picture
    return to_linear(picture) if target == "linear" else to_srgb(picture)


def colour_round_trip() -> Check:
    """sRGB to linear and back, and the other way, over the whole range; and the figure of the standard in between."""
    levels = torch.linspace(0, 1, 4097)
    trips = [to_srgb(to_linear(levels)) - levels, to_linear(to_srgb(levels)) - levels]
    worst = float(torch.stack(trips).abs().amax())
    middle = float(to_linear(torch.tensor(0.5)))
    return Check(
        "sRGB and linear are each other's inverse",
        worst <= _ROUND_TRIP and abs(middle - 0.2140411) < _ROUND_TRIP,
        f"there and back within {_ROUND_TRIP:g}, 0.5 in sRGB is 0.214041 in linear",
        f"{worst:.1e}, {middle:.6f}",
        "see shadowlab/tasks/colour.py: the curve is IEC 61966-2-1",
    )
