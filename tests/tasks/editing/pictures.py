"""Small data sets of edits, made of numbers: blocks of colour, discs that are taken out, and what is written of them.

Legend: H W pixels.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shadowlab.settings import checked_section
from shadowlab.tasks.editing import EDITS, EditingBatch, cast, painted
from shadowlab.tasks.editing.options import EditingOptions

Levels = np.ndarray


def options(edit: str = "white-balance", **given: Any) -> EditingOptions:
    model = {"edit": edit, **given.pop("model", {})}
    return checked_section(EditingOptions, {"model": model, **given}, "task_options")


def scene(number: int, side: int = 32) -> Levels:
    """(H, W, 3) uint8: tiles of a few colours."""
    rng = np.random.default_rng(number)
    tiles = rng.integers(30, 220, (4, 4, 3))
    return tiles.repeat(side // 4, axis=0).repeat(side // 4, axis=1).astype(np.uint8)


def disc(number: int, side: int = 32) -> Levels:
    """(H, W) uint8: 255 in a disc, 0 elsewhere."""
    y, x = np.mgrid[:side, :side]
    centre = side * (0.35 + 0.05 * (number % 6))
    return np.where((x - centre) ** 2 + (y - side / 2) ** 2 < (side / 5) ** 2, 255, 0).astype(np.uint8)


def gains_of(number: int) -> tuple[float, float, float]:
    return 0.7 + 0.15 * (number % 5), 1.0, 1.4 - 0.15 * (number % 4)


def under_gains(picture: Levels, gains: tuple[float, float, float]) -> Levels:
    values = torch.from_numpy(picture / 255).permute(2, 0, 1)
    made = cast(values, torch.tensor(gains, dtype=torch.float64))
    return (made * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def triple(edit: str, number: int, side: int = 32) -> dict[str, Levels]:
    """Role -> levels."""
    target = scene(number, side)
    if edit == "white-balance":
        return {"input": under_gains(target, gains_of(number)), "target": target}
    if edit == "object-removal":
        mask = disc(number, side)
        return {"input": np.where(mask[..., None] > 0, 255 - target, target), "target": target, "mask": mask}
    flat = painted(torch.from_numpy(target / np.float32(255)).permute(2, 0, 1)[None].float(), "flat")[0]
    return {"input": (flat * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), "target": target}


def save(levels: Levels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def make_folder(root: Path, edit: str, count: int = 4, side: int = 32, *, without: tuple[str, ...] = ()) -> Path:
    for number in range(count):
        for role, levels in triple(edit, number, side).items():
            if role not in without:
                save(levels, root / role / f"s{number}.png")
    return root


def make_list(
    root: Path, edit: str, count: int = 4, side: int = 32, *, first: int = 0, name: str = "pairs.csv", **columns: Any
) -> Path:
    """A list of pictures that lie next to it. columns: further ones, name -> function of the number."""
    rows = []
    for number in range(first, first + count):
        row = {}
        for role, levels in triple(edit, number, side).items():
            row[role] = f"files/{role}{number}.png"
            save(levels, root / row[role])
        rows.append(row | {column: make(number) for column, make in columns.items()})
    return write_rows(root / name, rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    return path


def batch_of(edit: str, count: int = 3, side: int = 32) -> EditingBatch:
    """Samples as the model is given them."""
    made = [triple(edit, number, side) for number in range(count)]

    def stacked(role: str) -> torch.Tensor:
        return torch.stack([torch.from_numpy(one[role] / np.float32(255)).float() for one in made])

    whole = torch.ones(count, 1, side, side)
    names = [f"s{i}" for i in range(count)]
    return EditingBatch(
        ids=names,
        objects=names,
        input=stacked("input").permute(0, 3, 1, 2),
        target=stacked("target").permute(0, 3, 1, 2),
        mask=stacked("mask")[:, None] if EDITS[edit].has_mask else whole,  # type: ignore[index]
        valid=whole,
        gains=torch.tensor([gains_of(i) for i in range(count)]),
    )
