"""The specification of the editing task, in torch and the standard library: of shadowlab nothing but what all
specifications share is imported.

Written from the documents (IEC 61966-2-1; Sharma, Wu and Dalal, 2005; Sobel and Feldman, 1968; the rulings of this
project), not from the code that it is compared with, and plainly rather than fast.

Legend: B batch, H W pixels of a file, S image size, h w latents (S/8). Levels are whole numbers as files hold them.
"""

import math

import torch
from torch import Tensor

from shadowlab.tasks.specification import letterboxed, linear_of, srgb_of

# Reading


def small_mask(mask: Tensor, side: int) -> Tensor:
    """(1, H, W) in {0, 1} -> (1, S, S): 1 where any of it was 1."""
    return (letterboxed(mask, side) > 0.001).float()


def inside_of_borders(height: int, width: int, side: int) -> Tensor:
    """(1, S, S): 0 on the borders that make a picture square."""
    return (letterboxed(torch.ones(1, height, width), side) > 0.999).float()


def covered(mask: Tensor) -> Tensor:
    """(B, 1, S, S) -> (B, 1, h, w): the share of each latent's 64 pixels."""
    return mask.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).mean(dim=(3, 5))


# White balance, in linear light


def under_gains(levels: Tensor, gains: tuple[float, ...]) -> Tensor:
    """Levels (H, W, 3) of 255 of a picture under gains: multiplied in light, cut off at white, encoded, rounded."""
    light = linear_of(levels.double() / 255) * torch.tensor(gains, dtype=torch.float64)
    return (srgb_of(light.clamp(max=1.0)) * 255).round().long()


def corrected(given: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """(3, H, W): the given picture, each channel times the number that brings it nearest to the wanted one, in light.
    counts: (H, W) bool."""
    found = []
    for x, y in zip(given.double(), wanted.double(), strict=True):
        used = counts & (x < 254.5 / 255) & (y < 254.5 / 255)
        light, goal = linear_of(x), linear_of(y)
        power = float((light[used] ** 2).sum())
        gain = float((light[used] * goal[used]).sum()) / power if power > 1e-12 else 1.0
        found.append(srgb_of((light * gain).clamp(0, 1)))
    return torch.stack(found).float()


# Painting


def luma_steepness(picture: Tensor) -> Tensor:
    """(3, H, W) -> (H, W): Sobel's gradient of the luma, a quarter of it; the picture goes on as its border is."""
    luma = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
    padded = torch.cat([luma[:1], luma, luma[-1:]])
    padded = torch.cat([padded[:, :1], padded, padded[:, -1:]], dim=1)
    right, down = padded[:, 2:] - padded[:, :-2], padded[2:] - padded[:-2]
    across = (right[:-2] + 2 * right[1:-1] + right[2:]) / 4
    along = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 4
    return (across**2 + along**2).sqrt()


def has_line(picture: Tensor) -> Tensor:
    """(H, W) bool."""
    return luma_steepness(picture) >= 0.25


def painting_of(picture: Tensor, kind: str) -> Tensor:
    """(3, H, W): `flat`: means of 5 x 5 pixels at 0, 1/3, 2/3 or 1, `sketch`: white; lines of 0.1 on it."""
    ground = torch.ones_like(picture)
    if kind == "flat":
        rows = torch.cat([picture[:, :1]] * 2 + [picture] + [picture[:, -1:]] * 2, dim=1)
        wide = torch.cat([rows[:, :, :1]] * 2 + [rows] + [rows[:, :, -1:]] * 2, dim=2)
        means = wide.unfold(1, 5, 1).unfold(2, 5, 1).mean(dim=(3, 4))
        ground = (means * 3 + 0.5).floor().clamp(max=3) / 3
    return torch.where(has_line(picture), 0.1, ground)


# Metrics, of one picture each: p as painted, g truth, (3, H, W) in [0, 1]; counts (H, W) bool


def error(p: Tensor, g: Tensor, counts: Tensor) -> float:
    """Mean of squares; 0 where nothing counts."""
    return float((p.double() - g.double())[:, counts].square().mean()) if bool(counts.any()) else 0.0


def decibels(squares: float) -> float:
    return min(100.0, -10 * math.log10(squares)) if squares else 100.0


def angle(p: Tensor, g: Tensor, counts: Tensor) -> float:
    """Mean degrees between linear colours, of pixels whose true colour is at least 0.01 long; black is at 90."""
    x, y = linear_of(p.double())[:, counts], linear_of(g.double())[:, counts]
    kept = (y * y).sum(dim=0).sqrt() >= 0.01
    if not bool(kept.any()):
        return 0.0
    x, y = x[:, kept], y[:, kept]
    length = (x * x).sum(dim=0).sqrt()
    # From the difference of the unit vectors, whose length is 2 sin(angle / 2): exact where the arc cosine is not.
    apart = x / length.clamp_min(1e-300) - y / (y * y).sum(dim=0).sqrt()
    degrees = 2 * (apart.square().sum(dim=0).sqrt() / 2).clamp(max=1).asin() * 180 / math.pi
    return float(torch.where(length > 0, degrees, 90.0).mean())


def lab(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(3, ...) sRGB -> L*, a*, b* under D65."""
    r, g, b = linear_of(picture.double())
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (torch.where(t > 216 / 24389, t.pow(1 / 3), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def delta_e(p: Tensor, g: Tensor) -> Tensor:
    """(3, N) sRGB each -> (N,), CIEDE2000 by its equations (2) to (22), in degrees."""
    lightness, red, yellow = zip(lab(p), lab(g), strict=True)
    chroma = [(a**2 + b**2).sqrt() for a, b in zip(red, yellow, strict=True)]
    mean = (chroma[0] + chroma[1]) / 2
    factor = 0.5 * (1 - (mean**7 / (mean**7 + 25**7)).sqrt())
    red2 = [(1 + factor) * a for a in red]
    chroma2 = [(a**2 + b**2).sqrt() for a, b in zip(red2, yellow, strict=True)]
    hue = [torch.atan2(b, a) * 180 / math.pi % 360 for a, b in zip(red2, yellow, strict=True)]
    grey = chroma2[0] * chroma2[1] == 0
    apart = hue[1] - hue[0]
    apart = torch.where(apart > 180, apart - 360, torch.where(apart < -180, apart + 360, apart))
    apart = torch.where(grey, 0.0, apart)
    middle = (hue[0] + hue[1]) / 2
    far = (hue[0] - hue[1]).abs() > 180
    middle = torch.where(far & (hue[0] + hue[1] < 360), middle + 180, torch.where(far, middle - 180, middle))
    middle = torch.where(grey, hue[0] + hue[1], middle)

    def cosine(degrees: Tensor) -> Tensor:
        return torch.cos(degrees * math.pi / 180)

    t = 1 - 0.17 * cosine(middle - 30) + 0.24 * cosine(2 * middle)
    t = t + 0.32 * cosine(3 * middle + 6) - 0.20 * cosine(4 * middle - 63)
    light, colour = (lightness[0] + lightness[1]) / 2, (chroma2[0] + chroma2[1]) / 2
    s_l = 1 + 0.015 * (light - 50) ** 2 / (20 + (light - 50) ** 2).sqrt()
    s_c, s_h = 1 + 0.045 * colour, 1 + 0.015 * colour * t
    turn = 30 * torch.exp(-(((middle - 275) / 25) ** 2))
    r_t = -2 * (colour**7 / (colour**7 + 25**7)).sqrt() * torch.sin(2 * turn * math.pi / 180)
    d_h = 2 * (chroma2[0] * chroma2[1]).sqrt() * torch.sin(apart * math.pi / 360)
    ratio_l = (lightness[1] - lightness[0]) / s_l
    ratio_c, ratio_h = (chroma2[1] - chroma2[0]) / s_c, d_h / s_h
    return (ratio_l**2 + ratio_c**2 + ratio_h**2 + r_t * ratio_c * ratio_h).clamp_min(0).sqrt()


def lines_agree(p: Tensor, g: Tensor, counts: Tensor) -> float:
    """F-measure of lines, each of which may be a pixel off."""
    own, right = has_line(p) & counts, has_line(g) & counts
    if not bool(own.any() | right.any()):
        return 1.0

    def near(lines: Tensor) -> Tensor:
        wide = torch.zeros(lines.shape[0] + 2, lines.shape[1] + 2, dtype=torch.bool)
        for down in range(3):
            for across in range(3):
                wide[down : down + lines.shape[0], across : across + lines.shape[1]] |= lines
        return wide[1:-1, 1:-1]

    precision = float((own & near(right)).sum()) / max(1, int(own.sum()))
    recall = float((right & near(own)).sum()) / max(1, int(right.sum()))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def metrics(edit: str, p: Tensor, pictures: dict[str, Tensor], *, keep_input: bool) -> dict[str, float]:
    """pictures: input, target (3, H, W), mask and valid (1, H, W) of the sample."""
    g, given = pictures["target"], pictures["input"]
    valid, mask = pictures["valid"][0] > 0, pictures["mask"][0] > 0
    if edit == "white-balance":
        result = corrected(given, p, valid) if keep_input else p
        return {
            "rmse": math.sqrt(error(result, g, valid)),
            "mse": error(result, g, valid),
            "angular_error": angle(result, g, valid),
            "delta_e": float(delta_e(result[:, valid], g[:, valid]).mean()),
            "painted_rmse": math.sqrt(error(p, g, valid)),
            "painted_angular_error": angle(p, g, valid),
        }
    if edit == "object-removal":
        result = torch.where(mask, p, given) if keep_input else p
        return {
            "inside_rmse": math.sqrt(error(result, g, mask & valid)),
            "inside_psnr": decibels(error(result, g, mask & valid)),
            "outside_rmse": math.sqrt(error(result, g, ~mask & valid)),
            "painted_outside_rmse": math.sqrt(error(p, g, ~mask & valid)),
        }
    squares = error(p, g, valid)
    return {"rmse": math.sqrt(squares), "psnr": decibels(squares), "edge_agreement": lines_agree(p, g, valid)}
