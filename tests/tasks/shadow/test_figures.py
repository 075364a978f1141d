"""Pictures for people: what is not finite must not look like "no shadow"."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shadowlab.drawing import save_picture
from shadowlab.tasks.shadow.figures import comparison_grid, sweep_grid
from shadowlab.tasks.shadow.samples import Batch

MAGENTA = (255, 0, 160)
SIDE, HEADER = 96, 18


def colours(picture: Tensor) -> list[tuple[int, ...]]:
    """Of the lowest row, in the middle of each cell of `SIDE` pixels."""
    row = (picture[:, -SIDE // 2] * 255).round().int().T.tolist()
    return [tuple(row[x]) for x in range(SIDE // 2, len(row), SIDE)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_magenta(bad: float, tmp_path: Path) -> None:
    plain = torch.zeros(1, 1, SIDE, SIDE)
    batch = Batch(["a"], torch.zeros(1, 3, SIDE, SIDE), plain, plain, torch.zeros(1, 3))
    compared = comparison_grid(batch, plain, torch.full_like(plain, bad))
    grey, black = (128, 128, 128), (0, 0, 0)
    assert colours(compared) == [grey, black, MAGENTA, MAGENTA]  # the error of it, too

    dark, broken = torch.zeros(1, SIDE, SIDE), torch.full((1, SIDE, SIDE), bad)
    swept = sweep_grid(torch.zeros(3, SIDE, SIDE), {"theta": [(0.0, dark), (45.0, broken)]})
    assert colours(swept) == [grey, black, MAGENTA]

    picture = torch.full((3, 4, 4), 0.5)
    picture[1, 2, 3] = bad  # one channel of one pixel
    save_picture(picture, tmp_path / "x.png")
    saved = np.asarray(Image.open(tmp_path / "x.png"))
    assert tuple(saved[2, 3]) == MAGENTA
    assert (saved.reshape(-1, 3) == 128).all(axis=1).sum() == 15


def test_finite_values_beyond_the_range_are_its_ends() -> None:
    swept = sweep_grid(torch.ones(3, SIDE, SIDE), {"theta": [(v, torch.full((1, SIDE, SIDE), v)) for v in (-2.0, 3.0)]})
    assert colours(swept) == [(255, 255, 255), (0, 0, 0), (255, 255, 255)]
