"""How well a VAE brings shadow maps and object images back, and what its latents are like."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shadowlab.data import SampleSet
from shadowlab.metrics import psnr, soft_iou
from shadowlab.models import ImageVae
from shadowlab.seeding import normal
from shadowlab.tasks.shadow import Sample, collate

NOISE_SHARE = 0.05  # noise variance over latent variance, at which robustness is measured
_BATCH_SIZE = 16
_MAX_PSNR = 100.0  # dB counted for a picture that comes back exactly, instead of infinity


@dataclass(frozen=True)
class VaeQuality:
    """Reconstruction on given samples, without gradients, posterior mode. PSNR in dB for range 1, mean per image.

    Attributes:
        num_samples: samples measured.
        shadow_psnr_db: shadow maps, after `decode_grey`.
        shadow_soft_iou: sum min / sum max of shadow maps, mean per image.
        noisy_shadow_soft_iou: the same with Gaussian noise of 5 % of the latents' variance added before decoding.
        background_error: mean of the reconstruction where the true shadow is exactly 0.
        object_psnr_db: object images on their constant background.
        latent_mean, latent_std: of scaled shadow latents.
        latent_abs_max: largest absolute scaled shadow latent.
    """

    num_samples: int
    shadow_psnr_db: float
    shadow_soft_iou: float
    noisy_shadow_soft_iou: float
    background_error: float
    object_psnr_db: float
    latent_mean: float
    latent_std: float
    latent_abs_max: float


@torch.no_grad()
def measure_vae(vae: ImageVae, dataset: SampleSet[Sample], indices: Sequence[int], *, seed: int = 0) -> VaeQuality:
    """Encode and decode samples `indices` of `dataset` (at least one) and compare; see `VaeQuality`."""
    pieces: dict[str, list[Tensor]] = {name: [] for name in ("psnr", "iou", "noisy", "black", "object", "latent")}
    for start in range(0, len(indices), _BATCH_SIZE):
        chosen = indices[start : start + _BATCH_SIZE]
        batch = collate([dataset[i] for i in chosen])
        shadow, picture = batch.shadow, batch.object_image
        latent = vae.encode_grey(shadow)
        decoded = vae.decode_grey(latent).cpu()
        noise = torch.stack([normal(latent.shape[1:], seed, "vae-robustness", i) for i in chosen]).to(latent.device)
        noisy = vae.decode_grey(latent + math.sqrt(NOISE_SHARE) * noise).cpu()  # scaled latents have variance 1
        returned = vae.decode(vae.encode(picture)).cpu()
        pieces["psnr"].append(psnr(decoded, shadow).clamp(max=_MAX_PSNR))
        pieces["iou"].append(soft_iou(decoded, shadow))
        pieces["noisy"].append(soft_iou(noisy, shadow))
        pieces["black"].append(decoded[shadow == 0])
        pieces["object"].append(psnr(((returned + 1) / 2).clamp(0, 1), (picture + 1) / 2).clamp(max=_MAX_PSNR))
        pieces["latent"].append(latent.cpu().flatten())
    value = {name: torch.cat(parts).double() for name, parts in pieces.items()}
    return VaeQuality(
        num_samples=len(indices),
        shadow_psnr_db=float(value["psnr"].mean()),
        shadow_soft_iou=float(value["iou"].mean()),
        noisy_shadow_soft_iou=float(value["noisy"].mean()),
        background_error=float(value["black"].mean()) if len(value["black"]) else 0.0,
        object_psnr_db=float(value["object"].mean()),
        latent_mean=float(value["latent"].mean()),
        latent_std=float(value["latent"].std()),
        latent_abs_max=float(value["latent"].abs().max()),
    )
