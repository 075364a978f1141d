"""One row of a data set, one batch.

Legend: B batch, H W pixels, N tokens, D width of cross-attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from shadowlab.errors import UserError


@dataclass(frozen=True, eq=False)
class InsertionSample:
    """What one row of any data set is."""

    id: str
    """Unique within its data set."""
    object_id: str
    """Samples of one object share it; a split never separates them."""
    target: Tensor
    """(3, H, W) float32 in [0, 1]: the picture with the object in it. The model is given what lies outside the mask."""
    object: Tensor
    """(3, H, W) float32 in [0, 1]: the object alone."""
    mask: Tensor
    """(1, H, W) float32 in {0, 1}: 1 where the object goes."""
    prompt: Tensor | None = None
    """(N, D) float32, what cross-attention is told; None: the empty prompt."""
    shown: bool = True
    """False where training drops the object."""


@dataclass(frozen=True, eq=False)
class InsertionBatch:
    """Samples stacked along a first dimension."""

    ids: list[str]
    """B sample ids."""
    objects: list[str]
    """B object ids."""
    target: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    object: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    mask: Tensor
    """(B, 1, H, W) float32 in {0, 1}."""
    shown: Tensor
    """(B,) float32 in {0, 1}: 0 where the object is dropped."""
    prompt: Tensor | None = None
    """(B, N, D) float32; None: the empty prompt for all."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> Self:
        """Those samples. rows: int64 indices (n,)."""
        places = rows.tolist()
        return replace(
            self,
            ids=[self.ids[i] for i in places],
            objects=[self.objects[i] for i in places],
            target=self.target[rows],
            object=self.object[rows],
            mask=self.mask[rows],
            shown=self.shown[rows],
            prompt=None if self.prompt is None else self.prompt[rows],
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on `device`; dtypes stay."""
        return replace(
            self,
            target=self.target.to(device, non_blocking=non_blocking),
            object=self.object.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            shown=self.shown.to(device, non_blocking=non_blocking),
            prompt=None if self.prompt is None else self.prompt.to(device, non_blocking=non_blocking),
        )


def collate(samples: Sequence[InsertionSample]) -> InsertionBatch:
    """Stack samples of one image size, in their order.

    Raises:
        UserError: their prompts have embeddings of different lengths, or some have none.
    """
    prompts = [sample.prompt for sample in samples]
    shapes = [None if one is None else tuple(one.shape) for one in prompts]
    if len(set(shapes)) > 1:
        odd = next(sample.id for sample, shape in zip(samples, shapes, strict=True) if shape != shapes[0])
        raise UserError(
            f"{odd}: its prompt_embedding has another shape than that of other rows; pad all to one number of tokens"
        )
    told = [one for one in prompts if one is not None]
    return InsertionBatch(
        ids=[sample.id for sample in samples],
        objects=[sample.object_id for sample in samples],
        target=torch.stack([sample.target for sample in samples]),
        object=torch.stack([sample.object for sample in samples]),
        mask=torch.stack([sample.mask for sample in samples]),
        shown=torch.tensor([float(sample.shown) for sample in samples]),
        prompt=torch.stack(told) if told else None,
    )
