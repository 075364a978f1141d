"""What a model sees of a batch, whatever the task: latents of the target, and conditions.

Legend: B batch, C channels, h w latents (H/8), D width of an embedding, N tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

LATENT_CHANNELS = 4
DOWNSCALE = 8  # of the VAE: a latent's side is an eighth of the picture's
_MOST_ELEMENTS = 2**28  # an incident keeps 512 MiB; a file may claim more with a stride of 0


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the model is given next to x_t and t; it takes those that its `ModelSpec` names."""

    concatenated: Tensor | None = None
    """(B, C, h, w) float32, joined to x_t along channels."""
    embedding: Tensor | None = None
    """(B, D) float32, joined to the time embedding."""
    tokens: Tensor | None = None
    """(B, N, D) float32, what cross-attention looks at."""

    def named(self) -> dict[str, Tensor]:
        """Those that are present, by the names of the fields, each (B, ...)."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def select(self, rows: Tensor) -> Self:
        """The conditions of those samples. rows: int64 indices (n,)."""
        return replace(self, **{name: tensor[rows] for name, tensor in self.named().items()})


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Samples as the step takes them; all tensors but `positions` float32 on the model's device."""

    ids: list[str]
    """B sample ids."""
    positions: Tensor
    """(B,) int64 on the CPU: each sample's place in the stream of training samples, from which its noise follows."""
    data: Tensor
    """(B, 4, h, w) latents of the target."""
    conditions: Conditions
    valid: Tensor | None = None
    """(B, 1, h, w) float32, at least 0: 1 where the target is known, which is where the loss is taken, 0 where it is
    not; a task may weigh the squared error by other values. None: 1 everywhere."""

    def __len__(self) -> int:
        return len(self.ids)

    def tensors(self) -> dict[str, Tensor]:
        """Named (B, ...) float tensors, for blame."""
        known = {} if self.valid is None else {"valid": self.valid}
        return {"data": self.data, **self.conditions.named(), **known}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Any]) -> Self:
        """The batch of `tensors()` with `ids` and `positions`, as an incident keeps it.

        Raises:
            ValueError: something is absent, unknown or no tensor, or they do not fit one another.
        """
        conditions = {field.name for field in fields(Conditions)}
        unknown = sorted(named.keys() - conditions - {"ids", "positions", "data", "valid"})
        if unknown:
            raise ValueError(f"`{unknown[0]}` is not part of a batch")
        given = {
            name: named[name]
            for name in ("positions", "data", "valid", *sorted(conditions & named.keys()))
            if name in named
        }
        wrong = [name for name in ("positions", "data") if name not in given]
        wrong += [name for name, value in given.items() if not isinstance(value, Tensor)]
        if wrong or not isinstance(named.get("ids"), list):
            raise ValueError(f"`{wrong[0] if wrong else 'ids'}` is absent or not what it must be")
        _require_one_batch(given, named["ids"])
        positions, data = given.pop("positions"), given.pop("data")
        valid = given.pop("valid", None)
        return cls(list(named["ids"]), positions.cpu(), data, Conditions(**given), valid)

    def at_positions(self, positions: Tensor) -> Self:
        """The same samples at other places (B,) of the stream, so with other noise."""
        return replace(self, positions=positions)

    def with_conditions(self, **changed: Tensor) -> Self:
        """The same samples with these conditions changed; names are the fields of `Conditions`, tensors (B, ...)."""
        return replace(self, conditions=replace(self.conditions, **changed))

    def resized(self, side: int) -> Self:
        """The same samples with latents area-averaged to `side` x `side`; known is what was known in all its area."""
        resize = torch.nn.functional.adaptive_avg_pool2d
        own = self.conditions.concatenated
        smaller = self if own is None else self.with_conditions(concatenated=resize(own, side))
        valid = None if self.valid is None else (resize((self.valid > 0).float(), side) == 1) * resize(self.valid, side)
        return replace(smaller, data=resize(self.data, side), valid=valid)

    def select(self, rows: slice | Tensor) -> Self:
        """Those samples. rows: a slice, or int64 indices (n,)."""
        index = torch.arange(len(self.ids))[rows]
        return replace(
            self,
            ids=[self.ids[i] for i in index.tolist()],
            positions=self.positions[index],
            data=self.data[index],
            conditions=self.conditions.select(index),
            valid=None if self.valid is None else self.valid[index],
        )


def joined(batches: Sequence[EncodedBatch]) -> EncodedBatch:
    """The samples of several batches with the same conditions, in their order, as one batch."""
    conditions = {
        name: torch.cat([batch.conditions.named()[name] for batch in batches]) for name in batches[0].conditions.named()
    }
    valid = [batch.valid for batch in batches if batch.valid is not None]
    return EncodedBatch(
        ids=[name for batch in batches for name in batch.ids],
        positions=torch.cat([batch.positions for batch in batches]),
        data=torch.cat([batch.data for batch in batches]),
        conditions=Conditions(**conditions),
        valid=torch.cat(valid) if valid else None,
    )


def _require_one_batch(tensors: Mapping[str, Tensor], ids: list[Any]) -> None:
    """Raise ValueError where these are not positions (B,) int64, data (B, 4, h, w), and others (B, ...) of B ids."""
    positions, size = tensors["positions"], len(ids)
    if not size or not all(isinstance(name, str) for name in ids):
        raise ValueError("`ids` is no list of names")
    if positions.dtype != torch.int64 or positions.ndim != 1 or tensors["data"].ndim != 4:
        raise ValueError("`positions` is not (B,) int64, or `data` not (B, 4, h, w)")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or not (name == "positions" or tensor.is_floating_point()):
            raise ValueError(f"`{name}` is no dense tensor of floating-point numbers")
        if not tensor.ndim or tensor.shape[0] != size:
            raise ValueError(f"`{name}` is not of {size} samples, as `ids` is")
    if sum(tensor.numel() for tensor in tensors.values()) > _MOST_ELEMENTS:
        raise ValueError("larger than any batch that is kept")
