"""What the specifications of several tasks share, in torch and the standard library: nothing of shadowlab is imported.

Written from the documents (IEC 61966-2-1; Salimans and Ho, 2022; Lin et al., 2024; Liu et al., 2023; Wang et al., 2004;
the PNG standard; the rulings of this project), not from the code that it is compared with, and plainly, not fast.

Legend: B batch, C channels, H W pixels of a file, S image size, h w latents (S/8). Levels are whole numbers as files
hold them.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# Colour, of float64


def linear_of(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055).pow(2.4))


def srgb_of(linear: Tensor) -> Tensor:
    curve = 1.055 * linear.clamp_min(0.001).pow(1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curve)


# Files. `most`: the largest level, 255 or 65535.


def png(levels: Tensor, most: int) -> bytes:
    """A PNG of (H, W, 1 grey or 3 RGB) levels."""
    height, width, channels = levels.shape
    form, depth = ("B", 8) if most == 255 else ("H", 16)
    rows = levels.reshape(height, -1).tolist()
    raw = b"".join(b"\0" + struct.pack(f">{len(row)}{form}", *row) for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 3: 2}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def picture(levels: Tensor, most: int) -> Tensor:
    """(H, W, 3 or 1) -> (3, H, W) in [0, 1]; a grey one has three equal channels."""
    values = levels.permute(2, 0, 1).double() / most
    return values.expand(3, -1, -1).float()


def valid_mask(levels: Tensor, most: int) -> Tensor:
    """(H, W, 1) -> (1, H, W): 1 from half of `most` on, else 0."""
    return (levels[..., 0].double() / most >= 0.5).float()[None]


def letterboxed(values: Tensor, side: int, fill: float = 0.0) -> Tensor:
    """(C, H, W) -> (C, S, S): the longer side becomes S, `fill` on both sides of the shorter one."""
    height, width = values.shape[1:]
    rows, columns = round(height * side / max(height, width)), round(width * side / max(height, width))
    small = values
    if (rows, columns) != (height, width):
        small = F.interpolate(values[None], (rows, columns), mode="bilinear", antialias=True)[0]
        small = small.clamp(values.min(), values.max())
    result = torch.full((len(values), side, side), fill)
    top, left = (side - rows) // 2, (side - columns) // 2
    result[:, top : top + rows, left : left + columns] = small
    return result


# Conditions


def random_prompt(seed: int, width: int) -> Tensor:
    """(2, E): what random weights are told, for want of a text encoder."""
    text = hashlib.sha256(f"{seed}/empty-prompt".encode()).hexdigest()[:16]
    return torch.randn(2, width, generator=torch.Generator("cpu").manual_seed(int(text, 16) // 2))


def latents(pictures: Tensor, encode: Callable[[Tensor], Tensor], scale: float, shift: float) -> Tensor:
    """(B, 3, S, S) in [0, 1] -> (B, 4, h, w)."""
    return (encode(pictures * 2 - 1) - shift) * scale


def decoded(found: Tensor, decode: Callable[[Tensor], Tensor], scale: float, shift: float) -> Tensor:
    """(B, 4, h, w) -> (B, 3, S, S) in [0, 1]."""
    return ((decode(found / scale + shift) + 1) / 2).clamp(0, 1)


# Objectives: t = 0 is noise, t = 1 is data


_DIFFUSION = "shadowlab/models/diffusion.py"


def signal(zero_terminal_snr: bool) -> list[float]:
    """alpha of the timesteps 0 .. 999. Lin et al., algorithm 1: the roots are shifted so that the last is 0, and scaled
    so that the first stays."""
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    alphas, product = [], 1.0
    for k in range(1000):
        product *= 1.0 - (first + (last - first) * k / 999) ** 2
        alphas.append(math.sqrt(product))
    if zero_terminal_snr:
        shifted = [alpha - alphas[-1] for alpha in alphas]
        alphas = [alpha * alphas[0] / shifted[0] for alpha in shifted]
    return alphas


class Diffusion:
    """prediction: `v` on the schedule that ends in noise alone, or `epsilon` on the plain one."""

    places: Mapping[str, str] = {
        "noised": f"{_DIFFUSION}, noised",
        "timesteps": "shadowlab/models/noise_schedule.py, NoiseSchedule.timesteps",
        "loss": f"{_DIFFUSION}, loss",
        "generate": f"{_DIFFUSION}, generate",
    }

    def __init__(self, prediction: str) -> None:
        self._is_v = prediction == "v"
        self._alphas = signal(self._is_v)

    def timestep(self, t: float) -> int:
        """t = 0 is 999, and each thousandth of t one less."""
        return max(0, 999 - math.floor(t * 1000 + 1e-3))

    def scales(self, t: float) -> tuple[float, float]:
        """Of data and of noise."""
        alpha = 1.0 if t >= 1 else self._alphas[self.timestep(t)]
        return alpha, math.sqrt(1 - alpha * alpha)

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        scales = [self.scales(float(one)) for one in t]
        return torch.stack([a * data[i] + s * noise[i] for i, (a, s) in enumerate(scales)])

    def timesteps(self, t: Tensor) -> Tensor:
        return torch.tensor([float(self.timestep(float(one))) for one in t], device=t.device)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Of v = alpha noise - sigma data, or of the noise, (B,)."""
        found = []
        for i, one in enumerate(t):
            alpha, sigma = self.scales(float(one))
            right = alpha * noise[i] - sigma * data[i] if self._is_v else noise[i]
            found.append((prediction[i] - right).square().mean())
        return torch.stack(found)

    def generate(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        """DDIM without new noise. Trailing: the first step is made at 999, the others in equal gaps before it."""
        visited = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
        times = [(999 - k) / 1000 for k in visited] + [1.0]
        x = noise
        for t, after in zip(times[:-1], times[1:], strict=True):
            found = predict(x, torch.full((len(x),), t, device=x.device))
            alpha, sigma = self.scales(t)
            if self._is_v:
                data, rest = alpha * x - sigma * found, sigma * x + alpha * found
            else:
                data, rest = (x - sigma * found) / alpha, found
            alpha, sigma = self.scales(after)
            x = alpha * data + sigma * rest
        return x


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
        return 1000 - 1000 * t

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return torch.stack([error.mean() for error in (prediction - (data - noise)).square()])

    def generate(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        x, width = noise, 1 / steps
        for i in range(steps):
            x = x + width * predict(x, torch.full((len(x),), i * width, device=x.device))
        return x


def known_loss(prediction: Tensor, right: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the latents that are valid. prediction, right: (B, 4, h, w). valid: (B, 1, h, w)."""
    found = []
    for one, other, mask in zip(prediction, right, valid, strict=True):
        kept = mask[0] > 0
        found.append((one[:, kept] - other[:, kept]).square().mean())
    return torch.stack(found)


# Metrics, of one picture each


def similarity(p: Tensor, g: Tensor, valid: Tensor) -> float:
    """SSIM (Wang et al., 2004) of each channel: Gaussian windows of 11 pixels, deviation 1.5, the picture goes on
    mirrored; its mean over the valid pixels."""
    bell = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    window = (bell[:, None] * bell[None] / bell.sum() ** 2)[None, None]

    def local(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x[:, None], (5, 5, 5, 5), mode="reflect"), window)[:, 0]

    a, b = local(p), local(g)
    aa, bb, ab = local(p * p) - a * a, local(g * g) - b * b, local(p * g) - a * b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * a * b + c1) * (2 * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))
    return float(found[:, valid].mean())
