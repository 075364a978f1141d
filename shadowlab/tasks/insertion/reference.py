"""The specification of the insertion task, in torch and the standard library: of shadowlab nothing is imported but
`shadowlab.tasks.specification`, which knows no more.

Written from the documents (Rombach et al., 2022, for the inpainting UNet's channels; Chong et al., CatVTON, ICLR 2025;
Zhou et al., DREAM, CVPR 2024; the rulings of this project), not from the code that it is compared with.

Legend: B batch, H W pixels of a file, S image size, h w latents (S/8). Levels are whole numbers as files hold them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from shadowlab.tasks.specification import Diffusion, decoded, latents, letterboxed, picture, random_prompt, similarity

__all__ = ["Diffusion", "decoded", "random_prompt"]


def model_pictures(target: Tensor, own: Tensor, mask: Tensor, side: int) -> dict[str, Tensor]:
    """Levels (H, W, 3 or 1) of 8 bits -> target, object (3, S, S) with borders of grey, mask (1, S, S) in {0, 1}."""
    white = (mask[..., 0].double() / 255 >= 0.5).float()[None]
    return {
        "target": letterboxed(picture(target, 255), side, 0.5),
        "object": letterboxed(picture(own, 255), side, 0.5),
        "mask": (letterboxed(white, side) >= 0.5).float(),
    }


def latent_mask(mask: Tensor) -> Tensor:
    """(B, 1, S, S) -> (B, 1, h, w): 1 where one of 64 pixels is."""
    return mask.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).amax(dim=(3, 5))


def canvas(first: Tensor, second: Tensor, beside: str) -> Tensor:
    """The second picture's latents below the first's, or to their right."""
    batch, channels, height, width = first.shape
    size = (2 * height, width) if beside == "height" else (height, 2 * width)
    found = torch.zeros(batch, channels, *size, device=first.device)
    found[..., :height, :width] = first
    found[..., -height:, -width:] = second
    return found


def encoded(
    pictures: dict[str, Tensor], encode: Callable[[Tensor], Tensor], scale: float, shift: float, beside: str
) -> dict[str, Tensor]:
    """What the model learns and is given. pictures: as `model_pictures`, stacked."""
    target, own, mask = (pictures[role] for role in ("target", "object", "mask"))
    grey = target * (1 - mask) + 0.5 * mask
    data, given, beside_it = (latents(one, encode, scale, shift) for one in (target, grey, own))
    small = latent_mask(mask).to(data.device)
    nothing = torch.zeros_like(small)
    return {
        "data": canvas(data, beside_it, beside),
        "concatenated": torch.cat([canvas(small, nothing, beside), canvas(given, beside_it, beside)], dim=1),
    }


def first_half(found: Tensor, beside: str) -> Tensor:
    """The target's latents of a canvas."""
    height, width = found.shape[-2:]
    return found[..., : height // 2, :] if beside == "height" else found[..., : width // 2]


def weighted_loss(prediction: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """sum w e^2 / sum w of each sample, (B,). prediction, right: (B, 4, ch, cw). weight: (B, 1, ch, cw)."""
    error = (prediction.double() - right.double()).square().mean(dim=1, keepdim=True) * weight
    return (error.flatten(1).sum(1) / weight.flatten(1).sum(1)).float()


def rectified(noise: Tensor, predicted: Tensor, sigma: Tensor, power: float) -> Tensor:
    """DREAM's noise: noise + lambda d with d = noise - predicted and lambda = sigma^p. sigma: (B,)."""
    return torch.stack([n + float(s) ** power * (n - p) for n, p, s in zip(noise, predicted, sigma, strict=True)])


def metrics(p: Tensor, g: Tensor, mask: Tensor) -> dict[str, float]:
    """Of one picture: p prediction, g truth, (3, S, S) in [0, 1]; mask (S, S) bool."""
    made = torch.where(mask, p.double(), g.double())
    found = {}
    for suffix, where in (("_inside", mask), ("", torch.ones_like(mask))):
        error = float((made - g.double())[:, where].square().mean())
        found[f"psnr{suffix}"] = min(100.0, -10 * math.log10(error)) if error else 100.0
        found[f"ssim{suffix}"] = similarity(made, g.double(), where)
        found[f"rmse{suffix}"] = math.sqrt(error)
    return found
