"""Golden samples: pictures that are known, written as a user's files are, and read back by the harness.

They are asymmetric and their channels differ. Those of the folder are square, those of the list are not. The list of
paint-to-image names no inputs: they are made.

Legend: H W pixels, S image size.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diagnostics.files import replace
from shadowlab.tasks.editing import reference
from shadowlab.tasks.specification import letterboxed, picture, png, valid_mask

SIDE = 64  # pixels, of the samples as the model sees them: three levels of a UNet need 4 x 4 latents at least
COUNT = 8
LIST = "pairs.csv"
_SQUARE = (64, 64, 96, 44)
_OTHER = ((64, 64), (48, 64), (96, 80), (44, 56))


@dataclass(frozen=True, eq=False)
class GoldenSample:
    """Levels of 255 as its files hold them, (H, W, 3 or 1) int64."""

    edit: str
    target: Tensor
    mask: Tensor
    gains: tuple[float, ...]

    @cached_property
    def input(self) -> Tensor:
        if self.edit == "white-balance":
            return reference.under_gains(self.target, self.gains)
        if self.edit == "object-removal":
            return torch.where(self.mask >= 128, 255 - self.target // 2, self.target)
        return self.target // 86 * 85

    def pictures(self, painting: str | None) -> dict[str, Tensor]:
        """What the model must be given: input, target (3, S, S), mask and valid (1, S, S), gains (3,).

        painting: that the input is made by; None: it has a file.
        """
        height, width = self.target.shape[:2]
        target = letterboxed(picture(self.target, 255), SIDE)
        if painting is None:
            given = letterboxed(picture(self.input, 255), SIDE)
        else:
            given = reference.painting_of(target, painting)
        has_mask = self.edit == "object-removal"
        mask = valid_mask(self.mask, 255) if has_mask else torch.ones(1, height, width)
        knows_gains = self.edit == "white-balance" and painting is None
        return {
            "input": given,
            "target": target,
            "mask": reference.small_mask(mask, SIDE),
            "valid": reference.inside_of_borders(height, width, SIDE),
            "gains": torch.tensor(self.gains) if knows_gains else torch.full((3,), torch.nan),
        }

    def files(self, *, with_input: bool) -> dict[str, bytes]:
        """Role -> PNG."""
        found = {"input": png(self.input, 255)} if with_input else {}
        found["target"] = png(self.target, 255)
        return found | ({"mask": png(self.mask, 255)} if self.edit == "object-removal" else {})


def golden_sample(edit: str, number: int, *, is_square: bool) -> GoldenSample:
    """The sample of a number, 0 .. 7: blocks of colour under a light that falls off to one side."""
    numbers = torch.Generator().manual_seed(300 + number)
    kind = number % 4
    height, width = (_SQUARE[kind],) * 2 if is_square else _OTHER[kind]
    blocks = torch.rand(-(-height // 8), -(-width // 8), 3, generator=numbers) * 0.7 + 0.05
    surface = blocks.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)[:height, :width]
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    light = (1.0 - 0.4 * x - 0.2 * y)[..., None] * torch.tensor([1.0, 0.95, 0.85])
    mask = torch.zeros(height, width, 1, dtype=torch.int64)
    mask[height // 4 : height // 2, width // 3 : 3 * width // 4] = 255
    mask[height // 4 - 1, width // 3 : 3 * width // 4] = 100
    stops = torch.rand(2, generator=numbers) * 1.2 - 0.6
    gains = float(2 ** stops[0]), 1.0, float(2 ** stops[1])
    return GoldenSample(edit, (surface * light * 255).round().long(), mask, gains)


def write_folder(samples: Mapping[str, GoldenSample], folder: Path) -> str:
    """As a user's folder: input/ target/ mask/."""
    for name, sample in samples.items():
        for role, data in sample.files(with_input=True).items():
            (folder / role).mkdir(exist_ok=True)
            replace(folder / role / f"{name}.png", data)
    return str(folder)


def write_list(samples: Mapping[str, GoldenSample], objects: Mapping[str, str], folder: Path) -> str:
    """As a user's list, with a folder an object."""
    edit = next(iter(samples.values())).edit
    rows = []
    for name, sample in samples.items():
        files = sample.files(with_input=edit != "paint-to-image")
        shot = name.partition("__")[2]
        row = {role: f"shots/{objects[name]}/{shot}{'' if i == 0 else f'_{role}'}.png" for i, role in enumerate(files)}
        for role, data in files.items():
            (folder / row[role]).parent.mkdir(parents=True, exist_ok=True)
            replace(folder / row[role], data)
        if edit == "white-balance":
            gains = zip(("gain_red", "gain_green", "gain_blue"), sample.gains, strict=True)
            row |= {column: repr(gain) for column, gain in gains}
        rows.append(row | {"object": objects[name]})
    text = io.StringIO(newline="")
    lines = csv.DictWriter(text, list(rows[0]))
    lines.writeheader()
    lines.writerows(rows)
    replace(folder / LIST, text.getvalue().encode())
    return str(folder / LIST)
