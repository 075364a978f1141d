"""Golden samples: rows that are known, written as a user's files are, and read back by the harness.

They are asymmetric and their channels differ; masks are soft and lopsided. The first half of them is square, the other
is not; each object has two rows.

Legend: H W pixels, S image size.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diagnostics.files import replace
from shadowlab.tasks.insertion import reference
from shadowlab.tasks.specification import png

SIDE = 64  # pixels, of the samples as the model sees them: three levels of a UNet need 4 x 4 latents at least
COUNT = 8
LIST = "rows.csv"
_SIZES = ((64, 64), (96, 96), (64, 64), (44, 44), (48, 64), (96, 80), (64, 40), (44, 56))
_OWN_SIZES = ((64, 64), (40, 72), (80, 56), (64, 96))


@dataclass(frozen=True, eq=False)
class GoldenRow:
    """Levels as its files hold them, (H, W, channels) int64."""

    target: Tensor
    object: Tensor
    mask: Tensor

    @cached_property
    def pictures(self) -> dict[str, Tensor]:
        """What the model must be given: target, object (3, S, S), mask (1, S, S)."""
        return reference.model_pictures(self.target, self.object, self.mask, SIDE)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Role -> PNG."""
        return {role: png(getattr(self, role), 255) for role in ("target", "object", "mask")}


def golden_row(number: int) -> GoldenRow:
    """The row of a number, 0 .. 7: a slope of colours with a patch of the object's pattern where the mask is."""
    numbers = torch.Generator().manual_seed(200 + number)
    height, width = _SIZES[number]
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    ground = torch.stack([0.2 + 0.6 * x, 0.8 - 0.5 * y, 0.3 + 0.4 * x * y], dim=2)
    ground = ground + 0.1 * torch.rand(1, 1, 3, generator=numbers)
    reach = 1.6 - 5.0 * ((x - 0.3 - 0.05 * number).square() * 1.4 + (y - 0.6).square()).sqrt()
    mask = (reach.clamp(0, 1) * 255).round().long()[..., None]
    own = _pattern(number // 2, *_OWN_SIZES[number // 2])
    pasted = torch.nn.functional.interpolate(own.permute(2, 0, 1)[None], (height, width), mode="nearest")[0]
    target = torch.where(mask >= 128, pasted.permute(1, 2, 0), ground)
    return GoldenRow((target * 255).round().long(), (own * 255).round().long(), mask)


def _pattern(number: int, height: int, width: int) -> Tensor:
    """Tiles of 8 pixels in warm colours, (H, W, 3) in [0, 1]."""
    numbers = torch.Generator().manual_seed(300 + number)
    tiles = torch.rand(-(-height // 8), -(-width // 8), 3, generator=numbers) * torch.tensor([1.0, 0.7, 0.4])
    return tiles.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)[:height, :width]


def names() -> list[str]:
    """Ids of the rows."""
    return [f"shots__golden_{i}" for i in range(COUNT)]


def owners() -> list[str]:
    """Object of each row."""
    return [f"things/thing_{i // 2}.png" for i in range(COUNT)]


def write_rows(folder: Path) -> str:
    """As a user's CSV file with its folders."""
    lines = ["mask,target_image,object_image"]  # in an order of its own: columns go by name
    for i, owner in enumerate(owners()):
        row = golden_row(i)
        files = {"mask": f"masks/golden_{i}.png", "target": f"shots/golden_{i}.png", "object": owner}
        for role, name in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            replace(folder / name, row.files[role])
        lines.append(",".join(files.values()))
    replace(folder / LIST, ("\r\n".join(lines) + "\r\n").encode())
    return str(folder / LIST)
