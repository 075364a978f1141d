"""Small data sets of insertion, made of numbers: an object's tiles pasted on a slope of colours.

Legend: H W pixels.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shadowlab.seeding import derive_seed, normal
from shadowlab.tasks.insertion import InsertionBatch

Picture = np.ndarray
HEADER = "target_image,object_image,mask"


def object_of(number: int, side: int = 32) -> Picture:
    """(S, S, 3) uint8: tiles in the object's own colours."""
    rng = np.random.default_rng(derive_seed(0, "object", number))
    tiles = rng.integers(32, 224, (2, 2, 3), np.uint8)  # a small VAE gives such pictures back
    return tiles.repeat(side // 2, 0).repeat(side // 2, 1)


def row_of(number: int, place: int, height: int, width: int) -> tuple[Picture, Picture]:
    """Target (H, W, 3) and mask (H, W), uint8."""
    y, x = np.mgrid[:height, :width]
    slope = np.stack([x / width, y / height, np.full((height, width), 0.1 * place % 1)], axis=2)
    target, mask = np.round(slope * 255).astype(np.uint8), np.zeros((height, width), np.uint8)
    side = min(height, width) // 3
    top, left = height // 2 - side // 2, (3 + 2 * place) % (width - side)
    own = Image.fromarray(object_of(number)).resize((side, side))
    target[top : top + side, left : left + side] = np.asarray(own)
    mask[max(0, top - 2) : top + side + 2, max(0, left - 2) : left + side + 2] = 255
    return target, mask


def save(picture: Picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def make_rows(
    root: Path, num_objects: int = 3, per_object: int = 2, size: tuple[int, int] = (64, 64), *, name: str = "rows.csv"
) -> Path:
    """A CSV file with its pictures below `root`."""
    lines = [HEADER]
    for number in range(num_objects):
        save(object_of(number), root / f"objects/thing_{number}.png")
        for place in range(per_object):
            target, mask = row_of(number, place, *size)
            stem = f"shot_{number}_{place}.png"
            save(target, root / "shots" / stem)
            save(mask, root / "masks" / stem)
            lines.append(f"shots/{stem},objects/thing_{number}.png,masks/{stem}")
    (root / name).write_text("\n".join(lines) + "\n")
    return root / name


def batch_of(count: int, side: int = 32) -> InsertionBatch:
    """Samples that differ in everything."""
    names = [f"row {i}" for i in range(count)]
    target, own = (normal((count, 3, side, side), 0, what).sigmoid() for what in ("target", "object"))
    mask = torch.zeros(count, 1, side, side)
    for i in range(count):
        mask[i, :, 4 + i : 15 + i, 6 : 19 - i] = 1
    return InsertionBatch(names, names, target, own, mask, torch.ones(count))


def tensor(picture: Picture) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
