"""The shadow task: everything that is particular to shadows, in one small object.

Legend: B batch, H W pixels, h w latents (H/8).

Step, loop, stages and diagnostics see a `Task` and `EncodedBatch`es; what is concatenated, what the embedding
means, what the target is and how a result is judged is decided here. Another task is another such object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from shadowlab.data import Role
from shadowlab.models import ShadowVae, Widening
from shadowlab.tasks.shadow.samples import Batch

LatentPart = Literal["data", "concatenated"]  # the fields of an EncodedBatch that come from pictures


@dataclass(frozen=True)
class EncodedBatch:
    """What the model and the flow see of a batch; all float32.

    data: (B, 4, h, w) latents of the target. concatenated: (B, 5, h, w) conditions joined along channels.
    embedding: (B, 768), joined to the time embedding. positions: (B,) int64, place of each sample in the stream
    of training samples, from which its noise follows.
    """

    ids: list[str]
    positions: Tensor
    data: Tensor
    concatenated: Tensor
    embedding: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Named (B, ...) float tensors, for blame."""
        return {"data": self.data, "concatenated": self.concatenated, "embedding": self.embedding}

    def at_positions(self, positions: Tensor) -> "EncodedBatch":
        """The same samples at other places of the stream, so with other noise."""
        return replace(self, positions=positions)

    def resized(self, side: int) -> "EncodedBatch":
        """The same samples with latents area-averaged to `side` x `side`."""
        resize = torch.nn.functional.adaptive_avg_pool2d
        return replace(self, data=resize(self.data, side), concatenated=resize(self.concatenated, side))

    def select(self, rows: slice | Tensor) -> "EncodedBatch":
        index = torch.arange(len(self.ids))[rows]
        return replace(
            self,
            ids=[self.ids[i] for i in index.tolist()],
            positions=self.positions[index],
            data=self.data[index],
            concatenated=self.concatenated[index],
            embedding=self.embedding[index],
        )


class ModelInputs(Protocol):
    """What a task's model gets beside t: enough to build one."""

    @property
    def in_channels(self) -> int: ...
    @property
    def embedding_dim(self) -> int: ...
    @property
    def widening(self) -> Widening: ...


class Task(ModelInputs, Protocol):
    """What a task must say."""

    name: str
    vae: ShadowVae

    @property
    def latent_parts(self) -> Mapping[LatentPart, tuple[Role, ...]]:
        """Which pictures decide each part; what is encoded once can be kept by their content."""

    def encode_part(self, part: LatentPart, batch: Batch) -> Tensor: ...
    def embed(self, light: Tensor) -> Tensor: ...
    def other_lights(self, light: Tensor) -> dict[str, Tensor]:
        """Condition to the same lights, far away in this condition alone."""
        ...

    def sweep(self, light: Tensor, steps: int) -> dict[str, list[tuple[float, Tensor]]]:
        """Condition to `steps` (value, light) over its range; the lights differ from `light` in it alone."""
        ...

    def encode(self, batch: Batch, positions: Tensor | None = None) -> EncodedBatch: ...
    def decode(self, latents: Tensor) -> Tensor: ...
    def target(self, batch: Batch) -> Tensor: ...
    def metrics(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]: ...
