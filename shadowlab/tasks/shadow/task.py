"""The shadow task: everything that is particular to shadows, in one small object."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from shadowlab.data import Role
from shadowlab.models import LATENT_CHANNELS, ShadowVae, Widening, mask_to_latent
from shadowlab.tasks.shadow.light import EMBEDDING_DIM, RANGES, embed_light
from shadowlab.tasks.shadow.metrics import per_image_metrics
from shadowlab.tasks.shadow.samples import Batch
from shadowlab.tasks.task import EncodedBatch, LatentPart


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
