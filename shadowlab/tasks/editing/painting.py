"""What a person might paint of a picture, made of it: the same picture gives the same painting.

Legend: B batch, H W pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Painting = Literal["flat", "sketch"]
LEVELS = 4
"""Of each channel of a flat painting: 0, 1/3, 2/3 and 1."""
SMOOTHED = 5
"""Side, in pixels, of the square over which colours are averaged before they become flat."""
EDGE = 0.25
"""Steepness of the luma, per two pixels, from which on there is a line."""
INK = 0.1
_LUMA = (0.299, 0.587, 0.114)
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def painted(target: Tensor, kind: Painting) -> Tensor:
    """A painting of pictures: (B, 3, H, W) sRGB in [0, 1], both; sides of 3 pixels at least."""
    lines = edges(target) > 0
    if kind == "sketch":
        ground = torch.ones_like(target)
    else:
        margin = SMOOTHED // 2
        smooth = F.avg_pool2d(F.pad(target, (margin,) * 4, mode="replicate"), SMOOTHED, stride=1)
        ground = (smooth * (LEVELS - 1) + 0.5).floor().clamp(0, LEVELS - 1) / (LEVELS - 1)
    return torch.where(lines, torch.full_like(target, INK), ground)


def steepness(picture: Tensor) -> Tensor:
    """Length of Sobel's gradient of the luma, per two pixels, (B, 1, H, W): a step of 1 has 1."""
    weights = torch.tensor(_LUMA, dtype=picture.dtype, device=picture.device).view(1, 3, 1, 1)
    luma = F.pad((picture * weights).sum(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor(_SOBEL, dtype=picture.dtype, device=picture.device) / 4
    both = F.conv2d(luma, torch.stack([kernel, kernel.T])[:, None])
    return both.square().sum(dim=1, keepdim=True).sqrt()


def edges(picture: Tensor) -> Tensor:
    """Where there is a line, (B, 1, H, W) float32 in {0, 1}."""
    return (steepness(picture) >= EDGE).float()


def edge_agreement(p: Tensor, g: Tensor, counts: Tensor) -> Tensor:
    """F-measure of the lines of two pictures, in [0, 1], (B,) float32; 1 where neither has one.

    A line counts as found where the other picture has one at most a pixel away.

    Args:
        p, g: (B, 3, H, W) sRGB in [0, 1].
        counts: (B, 1, H, W) in {0, 1}.
    """
    own, right = edges(p) * counts, edges(g) * counts
    near_own, near_right = (F.max_pool2d(one, 3, stride=1, padding=1) for one in (own, right))
    num_own, num_right = own.flatten(1).sum(dim=1), right.flatten(1).sum(dim=1)
    precision = (own * near_right).flatten(1).sum(dim=1) / num_own.clamp_min(1)
    recall = (right * near_own).flatten(1).sum(dim=1) / num_right.clamp_min(1)
    found = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return torch.where((num_own == 0) & (num_right == 0), torch.ones_like(found), found).float()
