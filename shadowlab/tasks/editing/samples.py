"""One sample of an edit, one batch.

Legend: B batch, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

_PICTURES = ("input", "target", "mask", "valid", "gains")


@dataclass(frozen=True, eq=False)
class EditingSample:
    """What one sample of any data set is. Pictures are sRGB."""

    id: str
    """Unique within its data set."""
    object_id: str
    """Samples of one object share it; a split never separates them."""
    input: Tensor
    """(3, H, W) float32 in [0, 1]: the picture that is edited."""
    target: Tensor
    """(3, H, W) float32 in [0, 1]: what it must become."""
    mask: Tensor
    """(1, H, W) float32 in {0, 1}: 1 where the object and its shadow are; all ones where the edit has no mask."""
    valid: Tensor
    """(1, H, W) float32 in {0, 1}: 0 on the borders that made the picture square."""
    gains: Tensor
    """(3,) float32: what made the input of the target, factors of linear red, green and blue; NaN where unknown. The
    model is never told."""


@dataclass(frozen=True, eq=False)
class EditingBatch:
    """Samples stacked along a first dimension; see `EditingSample`."""

    ids: list[str]
    """B sample ids."""
    objects: list[str]
    """B object ids."""
    input: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    target: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    mask: Tensor
    """(B, 1, H, W) float32 in {0, 1}."""
    valid: Tensor
    """(B, 1, H, W) float32 in {0, 1}."""
    gains: Tensor
    """(B, 3) float32, NaN where unknown."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> Self:
        """Those samples. rows: int64 indices (n,)."""
        places = rows.tolist()
        return replace(
            self,
            ids=[self.ids[i] for i in places],
            objects=[self.objects[i] for i in places],
            **{name: getattr(self, name)[rows] for name in _PICTURES},
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`; dtypes stay."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _PICTURES}
        return replace(self, **moved)


def collate(samples: Sequence[EditingSample]) -> EditingBatch:
    """Stack samples of one image size, in their order.

    Raises:
        ValueError: `samples` is empty.
    """
    if not samples:
        raise ValueError("collate needs samples, got none")
    return EditingBatch(
        ids=[sample.id for sample in samples],
        objects=[sample.object_id for sample in samples],
        **{name: torch.stack([getattr(sample, name) for sample in samples]) for name in _PICTURES},
    )
