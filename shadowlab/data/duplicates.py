"""Near-duplicate samples, found on thumbnails."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

_SIDE = 16  # thumbnail, pixels
_TOLERANCE = 2 / 255  # of the whole range, per thumbnail pixel: export noise, not a change of the light


class Thumbnails:
    """16 x 16 averages of every channel of each sample's pictures: 256 bytes a channel."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._rows: list[np.ndarray] = []  # (256 channels,) uint8

    def add(self, sample: str, layers: Sequence[Tensor]) -> None:
        """Remember one sample. layers: its pictures, each (C, H, W) in [0, 1] of any size, in the same order in all."""
        small = [F.adaptive_avg_pool2d(layer, _SIDE).numpy().ravel() for layer in layers]
        self._ids.append(sample)
        self._rows.append((np.concatenate(small) * 255).round().astype(np.uint8))

    def near_duplicates(self) -> list[tuple[str, str]]:
        """Pairs of ids whose thumbnails agree in every pixel; a sample is paired with one other at most."""
        if len(self._rows) < 2:
            return []
        rows = np.stack(self._rows).astype(np.int16)
        tolerance = round(_TOLERANCE * 255)
        # Near thumbnails have near averages, layer by layer: sorted by one layer, only a window must be compared.
        averages = rows.reshape(len(rows), -1, _SIDE * _SIDE).mean(axis=2)
        widest = averages.std(axis=0).argmax()
        order = np.argsort(averages[:, widest], kind="stable")
        rows, averages = rows[order], averages[order]
        ends = np.searchsorted(averages[:, widest], averages[:, widest] + tolerance, side="right")
        pairs = []
        for i, end in enumerate(ends):
            window = slice(i + 1, end)
            near = np.flatnonzero((np.abs(averages[window] - averages[i]) <= tolerance).all(axis=1)) + i + 1
            equal = near[(np.abs(rows[near] - rows[i]) <= tolerance).all(axis=1)]
            if equal.size:
                first, second = sorted((self._ids[order[i]], self._ids[order[equal[0]]]))
                pairs.append((first, second))
        return sorted(pairs)
