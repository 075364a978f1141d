"""Near-duplicate samples, found on thumbnails.

Legend: N samples, D = 256 channels.
"""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

_SIDE = 16  # of a thumbnail, pixels
_PIXELS = _SIDE * _SIDE
_TOLERANCE = 2  # of 255, per thumbnail pixel: export noise, not a change of the light
_FIRST_WINDOW = 64  # neighbours that are compared at once; more if none of them is near


def thumbnail(layers: Sequence[Tensor]) -> np.ndarray:
    """16 x 16 averages of every channel, (D,) uint8.

    Args:
        layers: a sample's pictures, each (C, H, W) in [0, 1] of any size, in the same order for all samples.
    """
    small = [F.adaptive_avg_pool2d(layer, _SIDE).numpy().ravel() for layer in layers]
    return (np.concatenate(small) * 255).round().astype(np.uint8)


def near_duplicates(ids: Sequence[str], rows: np.ndarray) -> list[tuple[str, str]]:
    """Pairs of ids whose thumbnails agree in every pixel; a sample is paired with one other at most.

    Args:
        ids: N sample ids.
        rows: (N, D) uint8, their thumbnails; may be mapped from a file.
    """
    if len(rows) < 2:
        return []
    # Near thumbnails have near averages, layer by layer: sorted by one layer, only a window must be compared.
    averages = np.stack([_averages(row) for row in rows])
    averages = averages[:, np.argsort(-averages.std(axis=0), kind="stable")]  # the most telling layer first
    order = np.argsort(averages[:, 0], kind="stable")
    columns = np.ascontiguousarray(averages[order].T)
    ends = np.searchsorted(columns[0], columns[0] + _TOLERANCE, side="right")
    pairs = []
    for i, end in enumerate(ends.tolist()):
        found = _first_near(i, end, columns, rows, order)
        if found is not None:
            first, second = sorted((ids[order[i]], ids[order[found]]))
            pairs.append((first, second))
    return sorted(pairs)


def _averages(row: np.ndarray) -> np.ndarray:
    """(D,) uint8 -> (channels,) float64."""
    return row.reshape(-1, _PIXELS).mean(axis=1)


def _first_near(i: int, end: int, columns: np.ndarray, rows: np.ndarray, order: np.ndarray) -> int | None:
    """The first of i + 1 .. end - 1 that is near i, by their places in `order`. columns: (channels, N)."""
    begin, count = i + 1, _FIRST_WINDOW
    mine = rows[order[i]].astype(np.int16)
    while begin < end:
        near = np.arange(begin, min(begin + count, end))
        for column in columns[1:]:
            near = near[np.abs(column[near] - column[i]) <= _TOLERANCE]
        equal = near[(np.abs(rows[order[near]] - mine) <= _TOLERANCE).all(axis=1)] if near.size else near
        if equal.size:
            return int(equal[0])
        begin, count = begin + count, count * 4
    return None
