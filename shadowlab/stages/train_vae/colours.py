"""Beauty and albedo as the small VAE is trained on them: any colours, one as good as another.

Legend: B batch, side the height and width of a window in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.data import SampleSet, sample_indices
from shadowlab.models import ImageVae
from shadowlab.seeding import derive_seed, generator, normal
from shadowlab.settings import load_config
from shadowlab.stages.train_vae.block_means import start_as_block_means
from shadowlab.stages.train_vae.pictures import window
from shadowlab.tasks import open_task
from shadowlab.tasks.albedo import AlbedoSample

_ALBEDO_SHARE = 0.6  # of each batch; what a model makes must come back best
_KL_WEIGHT = 3e-4
_MAX_NOISE = 0.15  # latent noise in training, in standard deviations of the channel
_GAIN = (0.5, 1.3)  # of each channel


@dataclass(frozen=True)
class ColourQuality:
    """Reconstruction on given samples, without gradients, posterior mode, in the space of the model.

    Attributes:
        num_samples: samples measured.
        albedo_psnr_db, beauty_psnr_db: mean per image, for range 1.
        latent_std: of scaled albedo latents.
        latent_abs_max: largest absolute scaled albedo latent.
    """

    num_samples: int
    albedo_psnr_db: float
    beauty_psnr_db: float
    latent_std: float
    latent_abs_max: float


class ColourStock:
    """A `Stock`."""

    def samples(self, path: str | Path, image_size: int) -> SampleSet[AlbedoSample]:
        """As `Stock`."""
        words = ["task=albedo", f"data.path={path}", f"data.image_size={image_size}"]
        return open_task(load_config(assignments=words)).open_data()

    def start(self, model: Any) -> None:
        """As means of blocks."""
        start_as_block_means(model)

    def batch(
        self,
        read: Callable[[int], AlbedoSample],
        indices: Sequence[int],
        step: int,
        batch_size: int,
        side: int,
        seed: int,
    ) -> dict[str, Tensor]:
        """pictures (B, 3, side, side) in [-1, 1]: channels exchanged and made brighter or darker at random."""
        rng, found = generator(seed, "vae-augment", step), []
        for i in sample_indices(step * batch_size, batch_size, len(indices), derive_seed(seed, "vae-colours")):
            sample = read(indices[i])
            is_albedo = float(torch.rand((), generator=rng)) < _ALBEDO_SHARE
            picture = (sample.albedo if is_albedo else sample.beauty)[torch.randperm(3, generator=rng)]
            low, high = _GAIN
            gains = low + (high - low) * torch.rand(3, 1, 1, generator=rng)
            brighter = (picture * gains).clamp(0, 1) * 2 - 1
            found.append(window(brighter, sample.valid > 0, side, rng))
        return {"pictures": torch.stack(found)}

    def loss_terms(self, model: Any, batch: Mapping[str, Tensor], step: int, seed: int) -> dict[str, Tensor]:
        """`loss`, `picture` and `kl`, each (); pictures (B, 3, H, W) are compared in [0, 1]."""
        pictures = batch["pictures"]
        posterior = model.encode(pictures).latent_dist
        draws = normal((2, *posterior.mean.shape), seed, "vae-noise", step).to(pictures.device)
        strength = torch.rand(len(pictures), 1, 1, 1, generator=generator(seed, "vae-strength", step)) * _MAX_NOISE
        strength = strength.to(pictures.device) * posterior.mean.detach().std(dim=(0, 2, 3), keepdim=True)
        decoded = model.decode(posterior.mean + posterior.std * draws[0] + strength * draws[1]).sample
        difference = (decoded - pictures) / 2
        picture = difference.abs().mean() + 10.0 * difference.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": picture + _KL_WEIGHT * kl, "picture": picture, "kl": kl}

    def pictures(self, sample: AlbedoSample) -> tuple[Tensor, Tensor]:
        """(3, H, W) in [-1, 1] each."""
        return sample.albedo * 2 - 1, sample.beauty * 2 - 1

    @torch.no_grad()
    def measure(self, vae: ImageVae, data: SampleSet[AlbedoSample], indices: Sequence[int], seed: int) -> ColourQuality:
        """Each picture whole, one at a time."""
        errors: dict[str, list[float]] = {"albedo": [], "beauty": []}
        latents = []
        for i in indices:
            for name, picture in zip(errors, self.pictures(data[i]), strict=True):
                latent = vae.encode(picture[None])
                returned = vae.decode(latent).cpu()[0].clamp(-1, 1)
                error = ((returned - picture) / 2).square().mean().clamp_min(1e-10)
                errors[name].append(-10 * float(error.log10()))
                if name == "albedo":
                    latents.append(latent.cpu())
        flat = torch.cat(latents)
        means = {name: sum(values) / len(values) for name, values in errors.items()}
        return ColourQuality(len(indices), means["albedo"], means["beauty"], float(flat.std()), float(flat.abs().max()))
