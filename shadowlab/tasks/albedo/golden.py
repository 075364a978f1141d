"""Golden samples: pairs that are known, written as a user's files are, and read back by the harness.

They are asymmetric, their channels differ, files have 8 and 16 bits, beauty and albedo are in two colour spaces. Those
of the folder are square and wholly valid, so that every latent counts; those of the list are neither.

Legend: H W pixels, S image size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diagnostics.files import replace
from shadowlab.tasks.albedo import reference
from shadowlab.tasks.specification import picture, png, srgb_of, valid_mask

SIDE = 64  # pixels, of the samples as the model sees them: three levels of a UNet need 4 x 4 latents at least
COUNT = 8
SPACES = {"beauty": "srgb", "albedo": "linear"}
_SQUARE = (64, 64, 96, 44)
_OTHER = ((64, 64), (48, 64), (96, 80), (44, 56))
LIST = "pairs.txt"


@dataclass(frozen=True, eq=False)
class GoldenPair:
    """Levels as its files hold them, (H, W, channels) int64, and the largest level of each."""

    beauty: Tensor
    albedo: Tensor
    valid: Tensor
    albedo_most: int

    def pictures(self, space: str) -> dict[str, Tensor]:
        """What the model must be given in a colour space: beauty, albedo (3, S, S), valid (1, S, S)."""
        beauty = reference.brought_to(picture(self.beauty, 255), SPACES["beauty"], space)
        albedo = reference.brought_to(picture(self.albedo, self.albedo_most), SPACES["albedo"], space)
        found = reference.model_pictures(beauty, albedo, valid_mask(self.valid, 255), SIDE)
        return dict(zip(("beauty", "albedo", "valid"), found, strict=True))

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Role -> PNG."""
        return {
            "beauty": png(self.beauty, 255),
            "albedo": png(self.albedo, self.albedo_most),
            "valid": png(self.valid, 255),
        }


def golden_pair(number: int, *, is_square: bool) -> GoldenPair:
    """The pair of a number, 0 .. 7. A surface of blocks under a light that falls off to one side."""
    numbers = torch.Generator().manual_seed(100 + number)
    kind = number % 4
    height, width = (_SQUARE[kind],) * 2 if is_square else _OTHER[kind]
    most = 65535 if kind == 3 else 255
    channels = 1 if kind == 3 else 3  # a PNG of 16 bits has one channel here
    blocks = torch.rand(-(-height // 8), -(-width // 8), channels, generator=numbers) * 0.7 + 0.05
    surface = blocks.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)[:height, :width]
    surface = surface * torch.tensor([1.0, 0.8, 0.6])[:channels]
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    light = (1.0 - 0.4 * x - 0.2 * y)[..., None] * torch.tensor([1.0, 0.95, 0.85])
    valid = torch.full((height, width, 1), 255)
    if not is_square:
        valid[: height // 3, : width // 4] = 40
        valid[-1, -1] = 0
    return GoldenPair(
        beauty=(srgb_of((surface * light).double()) * 255).round().long(),
        albedo=(surface.double() * most).round().long(),
        valid=valid,
        albedo_most=most,
    )


def write_folder(pairs: Mapping[str, GoldenPair], objects: Mapping[str, str], folder: Path) -> str:
    """As a user's folder: beauty/ albedo/ valid/ metadata.json."""
    for name, pair in pairs.items():
        for role, data in pair.files.items():
            (folder / role).mkdir(exist_ok=True)
            replace(folder / role / f"{name}.png", data)
    samples = {name: {"object": objects[name]} for name in pairs}
    replace(folder / "metadata.json", json.dumps({"colour_space": SPACES, "samples": samples}).encode())
    return str(folder)


def write_list(pairs: Mapping[str, GoldenPair], objects: Mapping[str, str], folder: Path) -> str:
    """As Marigold's lists, with a folder an object."""
    lines = ["# beauty albedo valid"]
    for name, pair in pairs.items():
        (folder / objects[name]).mkdir(exist_ok=True)
        shot = name.partition("__")[2].removesuffix("_beauty")
        names = {role: f"{objects[name]}/{shot}_{role}.png" for role in pair.files}
        for role, data in pair.files.items():
            replace(folder / names[role], data)
        lines.append(" ".join(names.values()))
    replace(folder / "metadata.json", json.dumps({"colour_space": SPACES}).encode())
    replace(folder / LIST, ("\n".join(lines) + "\n").encode())
    return str(folder / LIST)
