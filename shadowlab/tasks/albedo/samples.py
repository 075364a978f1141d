"""One pair of pictures, one batch.

Legend: B batch, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from shadowlab.tasks.colour import ColourSpace


@dataclass(frozen=True, eq=False)
class AlbedoSample:
    """What one sample of any data set is."""

    id: str
    """Unique within its data set."""
    object_id: str
    """Samples of one object share it; a split never separates them."""
    beauty: Tensor
    """(3, H, W) float32 in [0, 1], in `space`: the finished render, or a photograph."""
    albedo: Tensor
    """(3, H, W) float32 in [0, 1], in `space`."""
    valid: Tensor
    """(1, H, W) float32 in {0, 1}: where the albedo is known; all ones where the data set has no mask."""
    space: ColourSpace
    """Of both pictures, whatever the files are in: they are converted where they are read."""


@dataclass(frozen=True, eq=False)
class AlbedoBatch:
    """Samples stacked along a first dimension."""

    ids: list[str]
    """B sample ids."""
    objects: list[str]
    """B object ids."""
    beauty: Tensor
    """(B, 3, H, W) float32 in [0, 1], in `space`."""
    albedo: Tensor
    """(B, 3, H, W) float32 in [0, 1], in `space`."""
    valid: Tensor
    """(B, 1, H, W) float32 in {0, 1}."""
    space: ColourSpace
    """Of all pictures."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> Self:
        """Those samples. rows: int64 indices (n,)."""
        places = rows.tolist()
        return replace(
            self,
            ids=[self.ids[i] for i in places],
            objects=[self.objects[i] for i in places],
            beauty=self.beauty[rows],
            albedo=self.albedo[rows],
            valid=self.valid[rows],
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`; dtypes stay."""
        return replace(
            self,
            beauty=self.beauty.to(device, non_blocking=non_blocking),
            albedo=self.albedo.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
        )


def collate(samples: Sequence[AlbedoSample]) -> AlbedoBatch:
    """Stack samples of one image size and colour space, in their order.

    Raises:
        ValueError: `samples` is empty, or they are in different colour spaces.
    """
    spaces = {sample.space for sample in samples}
    if len(spaces) != 1:
        raise ValueError(f"collate needs samples of one colour space, got {', '.join(sorted(spaces)) or 'no sample'}")
    return AlbedoBatch(
        ids=[sample.id for sample in samples],
        objects=[sample.object_id for sample in samples],
        beauty=torch.stack([sample.beauty for sample in samples]),
        albedo=torch.stack([sample.albedo for sample in samples]),
        valid=torch.stack([sample.valid for sample in samples]),
        space=spaces.pop(),
    )
