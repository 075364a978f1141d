"""Pairs that follow a formula: pictures of smooth and stepped colours under smooth light."""

import torch
from torch import Tensor

from shadowlab.seeding import normal
from shadowlab.tasks.albedo import AlbedoBatch, ColourSpace, to_srgb


def albedo_of(number: int, side: int = 32) -> Tensor:
    """(3, S, S) linear in [0.05, 0.9]: 4 x 4 patches of one colour each."""
    patches = (normal((3, 4, 4), 0, "patches", number) * 1.5).sigmoid() * 0.85 + 0.05
    return patches.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)


def light_of(number: int, side: int = 32, coloured: bool = True) -> Tensor:
    """(3, S, S) in (0, 1): smooth, with a colour of its own."""
    coarse = (normal((1, 1, 3, 3), 0, "light", number) * 1.2).sigmoid() * 0.8 + 0.15
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bilinear", align_corners=True)[0]
    tint = (normal((3, 1, 1), 0, "tint", number) * 0.6).sigmoid() * 0.7 + 0.3
    return smooth * (tint if coloured else 1.0)


def batch_of(count: int, *, side: int = 32, space: ColourSpace = "srgb", valid: Tensor | None = None) -> AlbedoBatch:
    """Samples whose beauty is albedo times light. valid: (1, S, S) or None: all."""
    albedo = torch.stack([albedo_of(i, side) for i in range(count)])
    light = torch.stack([light_of(i, side) for i in range(count)])
    beauty = albedo * light
    mask = torch.ones(1, side, side) if valid is None else valid
    pictures = (beauty, albedo) if space == "linear" else (to_srgb(beauty), to_srgb(albedo))
    names = [f"pair {i}" for i in range(count)]
    return AlbedoBatch(names, names, *pictures, mask.expand(count, 1, -1, -1).clone(), space)
