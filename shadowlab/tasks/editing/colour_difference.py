"""How far two colours are apart: as an angle of linear light, and as people see it (CIEDE2000).

Legend: B batch, H W pixels.
"""

import math

import torch
from torch import Tensor

from shadowlab.tasks.colour import to_linear

# Linear sRGB to XYZ (IEC 61966-2-1), and the white of D65 that it gives.
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_DARKEST = 0.01
"""Length of linear light below which 8 bits hold no hue."""
_DEGREES = 180.0 / math.pi


def lab_of(picture: Tensor) -> Tensor:
    """sRGB (..., 3, H, W) in [0, 1] to CIE L*a*b* under D65, (..., 3, H, W) float64: L* in [0, 100]."""
    matrix = torch.tensor(_TO_XYZ, dtype=torch.float64, device=picture.device)
    light = torch.einsum("ij,...jhw->...ihw", matrix / matrix.sum(dim=1, keepdim=True), to_linear(picture.double()))
    knee = (6 / 29) ** 3
    f = torch.where(light > knee, light.clamp_min(knee) ** (1 / 3), light / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(dim=-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def ciede2000(one: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    """The colour difference Delta E 2000 of L*a*b* colours, with weights of 1.

    After Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula: implementation notes, supplementary test data,
    and mathematical observations", 2005.

    Args:
        one, other: (..., 3, ...) float64, L*, a* and b* along `dim`.

    Returns:
        (...), without that dimension.
    """
    (l1, a1, b1), (l2, a2, b2) = one.unbind(dim), other.unbind(dim)
    mean_c7 = ((a1.hypot(b1) + a2.hypot(b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * (mean_c7 / (mean_c7 + 25.0**7)).sqrt()
    c1, c2 = (a1 * stretch).hypot(b1), (a2 * stretch).hypot(b2)
    h1, h2 = (torch.atan2(b, a * stretch).remainder(2 * math.pi) for a, b in ((a1, b1), (a2, b2)))
    is_grey = c1 * c2 == 0
    turn = h2 - h1
    turn = turn - 2 * math.pi * (turn > math.pi) + 2 * math.pi * (turn < -math.pi)
    turn = turn.masked_fill(is_grey, 0.0)
    dl, dc, dh = l2 - l1, c2 - c1, 2 * (c1 * c2).sqrt() * (turn / 2).sin()
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    total = h1 + h2
    across = (h1 - h2).abs() > math.pi
    mean_h = torch.where(across, (total + torch.where(total < 2 * math.pi, 1, -1) * 2 * math.pi) / 2, total / 2)
    mean_h = torch.where(is_grey, total, mean_h)
    weight = (
        1
        - 0.17 * (mean_h - math.radians(30)).cos()
        + 0.24 * (2 * mean_h).cos()
        + 0.32 * (3 * mean_h + math.radians(6)).cos()
        - 0.20 * (4 * mean_h - math.radians(63)).cos()
    )
    rotation = math.radians(30) * (-(((mean_h * _DEGREES - 275) / 25) ** 2)).exp()
    c7 = mean_c**7
    turned = -(2 * rotation).sin() * 2 * (c7 / (c7 + 25.0**7)).sqrt()
    from_50 = (mean_l - 50) ** 2
    l_part = dl / (1 + 0.015 * from_50 / (20 + from_50).sqrt())
    c_part, h_part = dc / (1 + 0.045 * mean_c), dh / (1 + 0.015 * mean_c * weight)
    return (l_part**2 + c_part**2 + h_part**2 + turned * c_part * h_part).clamp_min(0).sqrt()


def mean_delta_e(p: Tensor, g: Tensor, counts: Tensor) -> Tensor:
    """Mean of `ciede2000` over pixels that count, (B,) float32. p, g: (B, 3, H, W) sRGB; counts: (B, 1, H, W)."""
    found = ciede2000(lab_of(p), lab_of(g), dim=1) * counts[:, 0]
    return (found.flatten(1).sum(dim=1) / counts.flatten(1).sum(dim=1).clamp_min(1.0)).float()


def angular_error(p: Tensor, g: Tensor, counts: Tensor) -> Tensor:
    """Mean angle in degrees between the colours of linear light of two pictures, (B,) float32; blind to brightness.

    Over pixels that count and whose true colour is at least 0.01 long; 0 where there is none. A black pixel of the
    prediction is 90 degrees off.

    Args:
        p, g: (B, 3, H, W) sRGB in [0, 1].
        counts: (B, 1, H, W) in {0, 1}.
    """
    x, y = to_linear(p.double()), to_linear(g.double())
    lengths = x.norm(dim=1), y.norm(dim=1)
    seen = (counts[:, 0] > 0) & (lengths[1] >= _DARKEST)
    across = torch.linalg.cross(x, y, dim=1).norm(dim=1)
    along = torch.where(lengths[0] > 0, (x * y).sum(dim=1), torch.zeros_like(across))
    angle = torch.where(lengths[0] > 0, torch.atan2(across, along), torch.full_like(across, math.pi / 2)) * _DEGREES
    return ((angle * seen).flatten(1).sum(dim=1) / seen.flatten(1).sum(dim=1).clamp_min(1)).float()
