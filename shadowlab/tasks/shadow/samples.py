"""One training sample, one user's picture, one batch.

Legend: B batch, H W pixels. Light = (theta degrees, phi degrees, size scene units).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """What one sample of any data set is."""

    id: str
    """Unique within its data set."""
    object_id: str
    """Samples of one object share it; a split never separates them."""
    object_image: Tensor
    """(3, H, W) float32 in [-1, 1], the object on a constant background (0.0 wherever mask is 0)."""
    mask: Tensor
    """(1, H, W) float32 in {0, 1}, 1 on the object."""
    shadow: Tensor
    """(1, H, W) float32 in [0, 1], bright = shadow, never binarised."""
    light: Tensor
    """(3,) float32 = theta in [0, 45] degrees, phi in [0, 360] degrees, size in [2, 8] scene units; with
    `data.augment.intensity` in the training stream (4,), intensity in [0, 1] as the last."""
    track: str | None = None
    """The benchmark's track, or None."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A user's own picture: what a sample has, less the shadow. Fields as in `Sample`."""

    id: str
    object_image: Tensor
    mask: Tensor
    light: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples stacked along a first dimension."""

    ids: list[str]
    """B sample ids."""
    object_image: Tensor
    """(B, 3, H, W) float32 in [-1, 1]."""
    mask: Tensor
    """(B, 1, H, W) float32 in {0, 1}."""
    shadow: Tensor
    """(B, 1, H, W) float32 in [0, 1]."""
    light: Tensor
    """(B, 3) float32 = theta, phi, size; or (B, 4), see `Sample.light`."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> "Batch":
        """Those samples. rows: int64 indices (n,)."""
        return Batch(
            ids=[self.ids[i] for i in rows.tolist()],
            object_image=self.object_image[rows],
            mask=self.mask[rows],
            shadow=self.shadow[rows],
            light=self.light[rows],
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`; dtypes stay."""
        return type(self)(
            ids=self.ids,
            object_image=self.object_image.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            shadow=self.shadow.to(device, non_blocking=non_blocking),
            light=self.light.to(device, non_blocking=non_blocking),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one image size, in their order.

    Raises:
        ValueError: `samples` is empty.
    """
    if not samples:
        raise ValueError("collate needs at least one sample")
    return Batch(
        ids=[sample.id for sample in samples],
        object_image=torch.stack([sample.object_image for sample in samples]),
        mask=torch.stack([sample.mask for sample in samples]),
        shadow=torch.stack([sample.shadow for sample in samples]),
        light=torch.stack([sample.light for sample in samples]),
    )
