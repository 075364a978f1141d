"""The shadow task: everything that is particular to shadows, in one small object.

Legend: B batch, H W pixels, h w latents (H/8).

Step, loop, stages and diagnostics see a `Task` and `EncodedBatch`es; what is concatenated, what the embedding
means, what the target is and how a result is judged is decided here. Another task is another such object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from shadowlab.data.index import Role
from shadowlab.data.sample import Batch
from shadowlab.evaluation.metrics import per_image_metrics
from shadowlab.light import EMBEDDING_DIM, RANGES, embed_light
from shadowlab.unet import Widening
from shadowlab.vae import LATENT_CHANNELS, ShadowVae, mask_to_latent

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


class ShadowTask:
    """Object, mask and light to the grey shadow map of the ground (arXiv 2412.11972)."""

    name = "shadow"
    in_channels = LATENT_CHANNELS + LATENT_CHANNELS + 1  # x_t, object latent, mask; this order is in the weights
    embedding_dim = EMBEDDING_DIM
    widening: ClassVar[Widening] = "zero"
    latent_parts: ClassVar[Mapping[LatentPart, tuple[Role, ...]]] = {
        "data": ("shadow",),
        "concatenated": ("object", "mask"),
    }

    def __init__(self, vae: ShadowVae) -> None:
        self.vae = vae

    @torch.no_grad()
    def encode(self, batch: Batch, positions: Tensor | None = None) -> EncodedBatch:
        """Encode pictures to latents on the VAE's device. `positions` defaults to 0 .. B-1."""
        embedding = self.embed(batch.light)
        batch = batch.to(self.vae.device)
        return EncodedBatch(
            ids=list(batch.ids),
            positions=torch.arange(len(batch.ids)) if positions is None else positions,
            data=self.encode_part("data", batch),
            concatenated=self.encode_part("concatenated", batch),
            embedding=embedding,
        )

    @torch.no_grad()
    def encode_part(self, part: LatentPart, batch: Batch) -> Tensor:
        """One part of `encode`, of a batch on the VAE's device: data (B, 4, h, w) or concatenated (B, 5, h, w)."""
        if part == "data":
            return self.vae.encode_shadow(batch.shadow)
        return torch.cat([self.vae.encode(batch.object_image), mask_to_latent(batch.mask)], dim=1)

    def embed(self, light: Tensor) -> Tensor:
        """(B, 3) theta, phi, size -> (B, 768) on the VAE's device."""
        return embed_light(light.cpu()).to(self.vae.device)  # checked on the CPU: no synchronisation later

    def other_lights(self, light: Tensor) -> dict[str, Tensor]:
        """(B, 3) -> for theta, phi and size the lights that differ in it alone: half a turn for phi, else the farther
        end of its range."""
        others = {}
        for column, (name, (low, high)) in enumerate(RANGES.items()):
            other = light.clone()
            own = light[:, column]
            far = torch.where(own * 2 > low + high, low, high)
            other[:, column] = (own + 180.0) % 360.0 if name == "phi" else far
            others[name] = other
        return others

    def sweep(self, light: Tensor, steps: int) -> dict[str, list[tuple[float, Tensor]]]:
        """(1, 3) -> for theta, phi and size `steps` lights over the range, both ends among them, but 360 degrees of
        phi, which are 0."""
        swept: dict[str, list[tuple[float, Tensor]]] = {}
        for column, (name, (low, high)) in enumerate(RANGES.items()):
            values = torch.linspace(low, high, steps + (name == "phi"))[:steps].tolist()
            swept[name] = []
            for value in values:
                other = light.clone()
                other[:, column] = value
                swept[name].append((value, other))
        return swept

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> predicted shadow maps (B, 1, H, W) float32 in [0, 1]."""
        return self.vae.decode_shadow(latents)

    def target(self, batch: Batch) -> Tensor:
        """(B, 1, H, W) in [0, 1]."""
        return batch.shadow

    def metrics(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Per-image metrics, name -> (B,)."""
        return per_image_metrics(prediction, self.target(batch).to(prediction.device))
