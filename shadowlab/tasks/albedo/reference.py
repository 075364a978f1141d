"""The specification of the albedo task, in torch and the standard library: nothing of shadowlab is imported.

Written from the documents (Ke et al., Marigold, CVPR 2024; Salimans and Ho, 2022; Lin et al., 2024; IEC 61966-2-1; the
rulings of this project), not from the code that it is compared with, and plainly rather than fast.

Legend: B batch, H W pixels of a file, S image size, h w latents (S/8). Levels are whole numbers as files hold them.
"""

import hashlib
import math
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


def brought_to(picture: Tensor, source: str, target: str) -> Tensor:
    """(...) in [0, 1], float32."""
    if source == target:
        return picture.float()
    return (linear_of if target == "linear" else srgb_of)(picture.double()).float()


# Reading. `most`: the largest level, 255 or 65535.


def picture(levels: Tensor, most: int) -> Tensor:
    """(H, W, 3 or 1) -> (3, H, W) in [0, 1]; a grey one has three equal channels."""
    values = levels.permute(2, 0, 1).double() / most
    return values.expand(3, -1, -1).float()


def valid_mask(levels: Tensor, most: int) -> Tensor:
    """(H, W, 1) -> (1, H, W): 1 from half of `most` on, else 0."""
    return (levels[..., 0].double() / most >= 0.5).float()[None]


def letterboxed(values: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (C, S, S): the longer side becomes S, zeros on both sides of the shorter one."""
    height, width = values.shape[1:]
    rows, columns = round(height * side / max(height, width)), round(width * side / max(height, width))
    small = values
    if (rows, columns) != (height, width):
        small = F.interpolate(values[None], (rows, columns), mode="bilinear", antialias=True)[0]
        small = small.clamp(values.min(), values.max())
    result = torch.zeros(len(values), side, side)
    top, left = (side - rows) // 2, (side - columns) // 2
    result[:, top : top + rows, left : left + columns] = small
    return result


def model_pictures(beauty: Tensor, albedo: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Beauty and albedo (3, S, S), in the model's colour space already; valid (1, S, S): 1 where all of it was 1."""
    small_mask = (letterboxed(valid, side) > 0.999).float()
    return letterboxed(beauty, side), letterboxed(albedo, side), small_mask


def latent_mask(valid: Tensor) -> Tensor:
    """(B, 1, S, S) -> (B, 1, h, w): 1 where all 64 pixels of a latent are valid."""
    blocks = valid.unflatten(2, (-1, 8)).unflatten(4, (-1, 8))
    return blocks.amin(dim=(3, 5))


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


class Coloured:
    """Another objective on noise of all resolutions, of a strength that falls with the timestep."""

    def __init__(self, objective: Diffusion | Flow, strength: float) -> None:
        self._objective, self._strength = objective, strength
        self.places: Mapping[str, str] = {
            **objective.places,
            "noised": "shadowlab/models/multi_resolution.py, multi_resolution",
        }

    def _noise(self, noise: Tensor, t: Tensor) -> Tensor:
        shares = self._objective.timesteps(t) / 1000
        return torch.stack([coloured(noise[i], self._strength * float(share)) for i, share in enumerate(shares)])

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return self._objective.noised(self._noise(noise, t), data, t)

    def timesteps(self, t: Tensor) -> Tensor:
        return self._objective.timesteps(t)

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        return self._objective.loss(prediction, self._noise(noise, t), data, t)

    def generate(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
        return self._objective.generate(predict, noise, steps)


def coloured(white: Tensor, strength: float) -> Tensor:
    """(C, h, w): the root of the covariance of white noise plus, for each size of blocks b = 2, 4, 8, ... that divides
    both sides, noise of deviation strength^j that is constant on blocks of b = 2^j; of variance 1 in total."""
    height, width = white.shape[-2:]
    sizes = [2**j for j in range(1, 7) if height % 2**j == 0 and width % 2**j == 0]
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    covariance = torch.eye(height * width, dtype=torch.float64)
    variance = 1.0
    for j, size in enumerate(sizes, start=1):
        block = (rows // size) * width + columns // size
        covariance += strength ** (2 * j) * (block[:, None] == block[None]).double()
        variance += strength ** (2 * j)
    values, vectors = torch.linalg.eigh(covariance / variance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return (white.flatten(1).double().cpu() @ root).reshape(white.shape).to(white)


def known_loss(prediction: Tensor, right: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the latents that are valid. prediction, right: (B, 4, h, w). valid: (B, 1, h, w)."""
    found = []
    for one, other, mask in zip(prediction, right, valid, strict=True):
        kept = mask[0] > 0
        found.append((one[:, kept] - other[:, kept]).square().mean())
    return torch.stack(found)


# Metrics, of one picture each: p prediction, g truth, (3, H, W) in [0, 1]; valid (H, W) bool


def metrics(p: Tensor, g: Tensor, valid: Tensor, space: str) -> dict[str, float]:
    screen_p, screen_g = (brought_to(one, space, "srgb").double() for one in (p, g))
    light_p, light_g = (brought_to(one, space, "linear").double()[:, valid] for one in (p, g))
    error = float((screen_p - screen_g)[:, valid].square().mean())
    power = float((light_p * light_p).sum())
    scale = float((light_p * light_g).sum()) / power if power else 1.0
    return {
        "psnr": min(100.0, -10 * math.log10(error)) if error else 100.0,
        "ssim": similarity(torch.where(valid, screen_p, screen_g), screen_g, valid),
        "rmse": math.sqrt(error),
        "si_rmse": math.sqrt(float((scale * light_p - light_g).square().mean())),
    }


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
