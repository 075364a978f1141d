"""Pictures under known gains, and the parts of photographs that they are applied to.

Everything is a pure function of its random generator. Pictures are (H, W, 3) uint8 sRGB.
"""

import numpy as np
import torch
from PIL import Image

from shadowlab.tasks.albedo.render import Picture
from shadowlab.tasks.editing.white_balance import cast

Random = np.random.Generator
STOPS = 0.75
"""Red and blue are multiplied by 2 to the power of at most this, up or down; green by 1."""
_LEAST_SHARE = 0.55  # of the shorter side of a photograph, that a part of it shows


def choose_gains(rng: Random) -> tuple[float, float, float]:
    """Factors of linear red, green and blue, to four decimals: what a list holds is what was applied."""
    red, blue = np.round(2.0 ** rng.uniform(-STOPS, STOPS, 2), 4).tolist()
    return red, 1.0, blue


def under_gains(picture: Picture, gains: tuple[float, float, float]) -> Picture:
    """Multiplied in linear light, cut off at white, and rounded to 8 bits of sRGB."""
    values = torch.from_numpy(picture.astype(np.float64) / 255).permute(2, 0, 1)
    found = cast(values, torch.tensor(gains, dtype=torch.float64))
    return (found * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def part_of(photograph: Picture, rng: Random, side: int) -> Picture:
    """A square part of a photograph, anywhere in it, at the size (side, side, 3)."""
    height, width = photograph.shape[:2]
    own = int(min(height, width) * rng.uniform(_LEAST_SHARE, 1.0))
    top, left = int(rng.integers(height - own + 1)), int(rng.integers(width - own + 1))
    part = Image.fromarray(np.ascontiguousarray(photograph[top : top + own, left : left + own]))
    return np.asarray(part.resize((side, side), Image.Resampling.BOX if own >= 2 * side else Image.Resampling.BICUBIC))
