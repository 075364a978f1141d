"""The specification of the shadow task, in torch and the standard library: nothing of shadowlab is imported.

Written from the documents (Tasar et al., arXiv 2412.11972, and the rulings of this project), not from the code that it
is compared with, and plainly rather than fast.

Legend: B batch, H W pixels of a file, S image size, h w latents (S/8). Levels are whole numbers as files hold them.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# Reading. `most`: the largest level, 255 or 65535.


def object_picture(levels: Tensor, most: int) -> Tensor:
    """(H, W, 3 or 4) -> (3, H, W) in [-1, 1]; what is transparent is mid grey, 0."""
    values = levels.permute(2, 0, 1).float() / most
    picture = 2 * values[:3] - 1
    return picture if len(values) == 3 else picture * values[3:]


def mask(levels: Tensor, most: int) -> Tensor:
    """(H, W, 1), or (H, W, 2) whose alpha is the mask -> (1, H, W): 1 from half of `most` on, else 0."""
    return (levels[..., -1].float() / most >= 0.5).float()[None]


def shadow_map(levels: Tensor, most: int) -> Tensor:
    """(H, W, 1) -> (1, H, W) in [0, 1], with every level that the file has."""
    return (levels[..., 0].double() / most).float()[None]


def letterboxed(picture: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (C, S, S): the longer side becomes S, zeros on both sides of the shorter one."""
    height, width = picture.shape[1:]
    rows, columns = round(height * side / max(height, width)), round(width * side / max(height, width))
    small = picture
    if (rows, columns) != (height, width):
        small = F.interpolate(picture[None], (rows, columns), mode="bilinear", antialias=True)[0]
        small = small.clamp(picture.min(), picture.max())
    result = torch.zeros(len(picture), side, side)
    top, left = (side - rows) // 2, (side - columns) // 2
    result[:, top : top + rows, left : left + columns] = small
    return result


def model_pictures(rgb: Tensor, covered: Tensor, shadow: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Object (3, S, S), mask (1, S, S), shadow (1, S, S): the object is cut out before it is resized, and after."""
    alone = torch.where(covered > 0, rgb, torch.zeros_like(rgb))
    small_mask = (letterboxed(covered, side) >= 0.5).float()
    return letterboxed(alone, side) * small_mask, small_mask, letterboxed(shadow, side)


# Conditions


def scalar_embedding(angle: float) -> Tensor:
    """(256,) float32: cosines, then sines, of k = 1 .. 128 times the angle, weights sqrt(0.8 ** k), norm sqrt(128)."""
    weights = [math.sqrt(0.8**k) for k in range(1, 129)]
    scale = math.sqrt(128 / sum(weight * weight for weight in weights))
    waves = [scale * w * wave(k * angle) for wave in (math.cos, math.sin) for k, w in enumerate(weights, start=1)]
    return torch.tensor(waves, dtype=torch.float64).float()


def light_embedding(theta: float, phi: float, size: float) -> Tensor:
    """(768,): theta in [0, 45] and size in [2, 8] turn half a circle, phi in degrees a whole one, 360 being 0."""
    angles = (theta / 45 * math.pi, math.radians(phi % 360), (size - 2) / 6 * math.pi)
    return torch.cat([scalar_embedding(angle) for angle in angles])


def latent_mask(picture: Tensor) -> Tensor:
    """(B, 1, S, S) -> (B, 1, h, w): the share of each latent pixel that the object covers."""
    rows = picture.unflatten(2, (-1, 8)).mean(dim=3)
    return rows.unflatten(3, (-1, 8)).mean(dim=4)


def latents(pictures: Tensor, encode: Callable[[Tensor], Tensor], scale: float, shift: float) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> (B, 4, h, w)."""
    return (encode(pictures) - shift) * scale


def shadow_latents(maps: Tensor, encode: Callable[[Tensor], Tensor], scale: float, shift: float) -> Tensor:
    """(B, 1, S, S) in [0, 1] -> (B, 4, h, w): as a grey picture in [-1, 1]."""
    return latents((2 * maps - 1).repeat(1, 3, 1, 1), encode, scale, shift)


def decoded(found: Tensor, decode: Callable[[Tensor], Tensor], scale: float, shift: float) -> Tensor:
    """(B, 4, h, w) -> (B, 1, S, S) in [0, 1]: the first channel."""
    return ((decode(found / scale + shift)[:, :1] + 1) / 2).clamp(0, 1)


# The flow: t = 0 is noise, t = 1 is data


class Flow:
    """Rectified flow (Liu et al., 2023)."""

    places: Mapping[str, str] = {
        "noised": "shadowlab/models/flow.py, interpolate",
        "timesteps": "shadowlab/models/flow.py, RectifiedFlow.timesteps",
        "loss": "shadowlab/models/flow.py, RectifiedFlow.loss",
        "generate": "shadowlab/models/flow.py, integrate",
    }

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return torch.stack([noise[i] + t[i] * (data[i] - noise[i]) for i in range(len(t))])

    def timesteps(self, t: Tensor) -> Tensor:
        """SDXL knows 0 .. 999 with 999 = noise."""
        return 1000 - 1000 * t

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Of the velocity that leads from noise to data, (B,)."""
        errors = (prediction - (data - noise)).square()
        return torch.stack([error.mean() for error in errors])

    def generate(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        """Euler from t = 0 in equal steps that end at t = 1."""
        x, width = noise, 1 / steps
        for i in range(steps):
            x = x + width * predict(x, torch.full((len(x),), i * width, device=x.device))
        return x


# Metrics, of one picture each: p prediction, g truth, (H, W) float64 in [0, 1]


def metrics(p: Tensor, g: Tensor) -> dict[str, float]:
    power = float((p * p).sum())
    scaled = p * (float((p * g).sum()) / power if power else 1.0)
    mean_p, mean_g = p - p.mean(), g - g.mean()
    spread = float(mean_p.norm() * mean_g.norm())
    flat = float(mean_p.abs().max()) < 1e-12 or float(mean_g.abs().max()) < 1e-12
    union = float(torch.maximum(p, g).sum())
    mse = float((p - g).square().mean())
    return {
        "rmse": math.sqrt(mse),
        "si_rmse": math.sqrt(float((scaled - g).square().mean())),
        "zncc": 0.0 if flat else float((mean_p * mean_g).sum()) / spread,
        "soft_iou": float(torch.minimum(p, g).sum()) / union if union else 1.0,
        "psnr": min(100.0, -10 * math.log10(mse)) if mse else 100.0,
        "ssim": similarity(p, g),
    }


def similarity(p: Tensor, g: Tensor) -> float:
    """SSIM (Wang et al., 2004): Gaussian windows of 11 pixels, deviation 1.5; the picture goes on mirrored."""
    bell = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    window = (bell[:, None] * bell[None] / bell.sum() ** 2)[None, None]

    def local(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x[None, None], (5, 5, 5, 5), mode="reflect"), window)[0, 0]

    a, b = local(p), local(g)
    aa, bb, ab = local(p * p) - a * a, local(g * g) - b * b, local(p * g) - a * b
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * a * b + c1) * (2 * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))).mean())
