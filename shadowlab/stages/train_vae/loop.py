"""Train a small autoencoder of SDXL's class on a data set's shadow maps and object images.

It stands in for SDXL's own VAE where that cannot be had: the same class, 8 times smaller latents of 4 channels, so
everything around it runs unchanged. `shadowlab/assets/vae` was made by this function.

Legend: B batch, H W pixels, h = H / 8, w = W / 8. Pictures are RGB in [-1, 1]; shadow maps are repeated to RGB.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor

from shadowlab.data import sample_indices, split_by_object
from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS
from shadowlab.errors import StageFailedError, UserError
from shadowlab.models import WEIGHTS_NAME, load_vae
from shadowlab.seeding import derive_seed, generator, normal
from shadowlab.stages.train_vae.quality import VaeQuality, measure_vae
from shadowlab.tasks.shadow import Sample, open_dataset

REPORT_NAME = "report.json"
VALIDATION_FRACTION = 0.1  # of the objects

SMALL_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 24, 32, 48),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,  # attention would tie the latents to one picture size
    "force_upcast": True,
}

_KL_WEIGHT = 1e-3  # enough to keep latents simple, which is what a small flow model learns fast
_IOU_WEIGHT = 0.2  # the error relative to a shadow's own mass, so that small shadows count too
_OBJECT_SHARE = 0.25  # of each batch; object images are the easier half
_WINDOW_STEPS = 0.8  # share of the steps that see half-size windows around the content: four times cheaper
_CONTENT = 0.02  # shadow above which a pixel counts as content
_MAX_NOISE = 0.3  # latent noise in training, in standard deviations of the channel; 5 % of variance is 0.22
_MAX_SHIFT = 8  # pixels: one latent cell, so that edges meet every phase of the 8-pixel grid
_NUM_SCALING_SAMPLES = 512  # training samples whose latents set the scale
_MAX_GRAD_NORM = 1.0
_WARMUP_SHARE = 0.05
_MAX_LEARNING_RATE = 10.0


@dataclass(frozen=True)
class VaeReport:
    """What `train_vae` did and reached; also written to `report.json`.

    Attributes:
        data, fingerprint: name and digest of the data set.
        steps, seed, batch_size, learning_rate, image_size: as asked for.
        num_train_objects, held_out_objects: the split by object.
        first_loss, last_loss: mean over the first tenth of the steps (windows) and the last (whole pictures).
        num_parameters, file_bytes: of the autoencoder, of its safetensors file.
        shadow_latent_std, latent_std: unscaled, of the training shadows, and of shadows and objects together.
        scaling_factor: 1 / shadow_latent_std, since the flow's data are shadow latents.
        held_out: quality on objects that were not trained on.
        seconds: wall time of training.
    """

    data: str
    fingerprint: str
    steps: int
    seed: int
    batch_size: int
    learning_rate: float
    image_size: int
    num_train_objects: int
    held_out_objects: list[str]
    first_loss: float
    last_loss: float
    num_parameters: int
    file_bytes: int
    shadow_latent_std: float
    latent_std: float
    scaling_factor: float
    held_out: VaeQuality
    seconds: float


def train_vae(
    *,
    data: str | Path,
    out: Path,
    steps: int,
    seed: int,
    batch_size: int,
    learning_rate: float,
    image_size: int,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    device: str = "cpu",
) -> VaeReport:
    """Train, measure on held-out objects, write `out` in diffusers' layout with `report.json`.

    Args:
        data: a data set as `open_dataset` takes it; a tenth of its objects is held out.
        out: absent or empty folder; it appears only once it is complete.
        steps: optimizer steps, at least 1.
        seed: weights, batches, augmentation and noise are functions of it.
        batch_size: pictures a step, half of them shadow maps, half object images; at least 2.
        learning_rate: peak of AdamW's, at most 10, after warm-up over 5 % of the steps; falls to 0 along a cosine.
        image_size: S, pixels, a multiple of 8.
        on_log: called about every hundredth of the steps, and after the first and last, with step, loss, its terms,
            grad_norm, learning_rate and seconds.
        device: where to train, such as `cpu` or `cuda`.

    Raises:
        UserError: `out` holds something or cannot be written (found before training), a number is out of range, or
            the data set cannot be used.
        StageFailedError: loss or gradient is not finite; raised before the optimizer's step, nothing is written.
    """
    if steps < 1 or batch_size < 2 or not 0.0 < learning_rate <= _MAX_LEARNING_RATE:
        raise UserError(
            f"train-vae: steps {steps}, batch size {batch_size}, learning rate {learning_rate}: "
            f"expected steps >= 1, batch size >= 2, a positive learning rate of at most {_MAX_LEARNING_RATE:g}"
        )
    dataset = open_dataset(data, image_size)
    split = split_by_object(dataset.object_ids, VALIDATION_FRACTION, seed)
    read = lru_cache(maxsize=1024)(dataset.__getitem__)

    with _new_folder(out) as folder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "vae-weights"))
            model: Any = AutoencoderKL(**SMALL_CONFIG, sample_size=image_size)
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        half = max(DOWNSCALE, image_size // 2 // DOWNSCALE * DOWNSCALE)
        start, losses = time.monotonic(), []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            side = half if step < _WINDOW_STEPS * steps else image_size
            shadows, objects = _batch(read, split.train, step, batch_size, side, seed)
            terms = _losses(model, shadows.to(device), objects.to(device), step, seed)
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
            values = {name: float(term.detach()) for name, term in {**terms, "grad_norm": norm}.items()}
            bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
            if bad:
                raise StageFailedError(
                    f"train-vae: {bad[0]} at step {step}, expected a finite number; "
                    f"lower --learning-rate ({learning_rate})"
                )
            optimizer.step()
            losses.append(values["loss"])
            if on_log is not None and (step % max(1, steps // 100) == 0 or step == steps - 1):
                rate = optimizer.param_groups[0]["lr"]
                on_log({"step": step, **values, "learning_rate": rate, "seconds": time.monotonic() - start})
        seconds = time.monotonic() - start

        model.eval()
        samples = [read(i) for i in split.train[:_NUM_SCALING_SAMPLES]]
        shadow_maps = [sample.shadow.expand(3, -1, -1) * 2.0 - 1.0 for sample in samples]
        _balance(model, _modes(model, shadow_maps))
        both = _modes(model, shadow_maps + [sample.object_image for sample in samples])
        shadow_std, both_std = float(both[: len(samples)].std()), float(both.std())
        model.register_to_config(scaling_factor=1.0 / shadow_std)
        tenth = max(1, steps // 10)

        with _writing(out):
            model.save_pretrained(folder, safe_serialization=True)
        vae = load_vae(str(folder)).to(device)
        report = VaeReport(
            data=dataset.name,
            fingerprint=dataset.fingerprint(),
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            learning_rate=learning_rate,
            image_size=image_size,
            num_train_objects=len({dataset.object_ids[i] for i in split.train}),
            held_out_objects=sorted({dataset.object_ids[i] for i in split.validation}),
            first_loss=sum(losses[:tenth]) / tenth,
            last_loss=sum(losses[-tenth:]) / tenth,
            num_parameters=vae.num_parameters,
            file_bytes=(folder / WEIGHTS_NAME).stat().st_size,
            shadow_latent_std=shadow_std,
            latent_std=both_std,
            scaling_factor=vae.scaling_factor,
            held_out=measure_vae(vae, dataset, split.validation, seed=seed),
            seconds=seconds,
        )
        with _writing(out):
            (folder / REPORT_NAME).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batch(
    read: Callable[[int], Sample], indices: Sequence[int], step: int, batch_size: int, side: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Augmented shadow maps (M, 1, side, side) in [0, 1] and object images (N, 3, side, side) in [-1, 1], M + N = B."""
    num_objects = max(1, round(_OBJECT_SHARE * batch_size))
    num_shadows = batch_size - num_objects
    rng = generator(seed, "vae-augment", step)
    shadows = []
    for i in sample_indices(step * num_shadows, num_shadows, len(indices), derive_seed(seed, "vae-shadows")):
        shadow = read(indices[i]).shadow
        shadows.append(_window(shadow, shadow > _CONTENT, side, rng))
    objects = []
    for i in sample_indices(step * num_objects, num_objects, len(indices), derive_seed(seed, "vae-objects")):
        sample = read(indices[i])
        gain = 0.6 + 0.8 * float(torch.rand((), generator=rng))
        brighter = (((sample.object_image + 1.0) * gain).clamp(0.0, 2.0) - 1.0) * sample.mask  # background stays 0
        objects.append(_window(brighter, sample.mask > 0.0, side, rng))
    return torch.stack(shadows), torch.stack(objects)


def _window(picture: Tensor, content: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """A random flip and quarter turn of a (C, side, side) window of `picture`, beyond which is 0.

    A full-size window is the picture shifted by at most `_MAX_SHIFT`; a smaller one holds a random content pixel.
    """
    size = picture.shape[-1]
    places = content[0].nonzero()
    if side < size and len(places):
        place = places[int(torch.randint(len(places), (), generator=rng))]
        corner = place - torch.randint(0, side, (2,), generator=rng)
    else:
        corner = torch.randint(-_MAX_SHIFT, size - side + _MAX_SHIFT + 1, (2,), generator=rng)
    top, left = (int(n) for n in corner)
    picture = F.pad(picture, (-left, left + side - size, -top, top + side - size))
    flip, turns = (int(n) for n in torch.randint(0, 4, (2,), generator=rng))
    return torch.rot90(picture.flip(-1) if flip % 2 else picture, turns, dims=(-2, -1))


def _losses(model: Any, shadows: Tensor, objects: Tensor, step: int, seed: int) -> dict[str, Tensor]:
    """Scalar `loss` and its terms. Pictures are compared in [0, 1]."""
    pictures = torch.cat([shadows.expand(-1, 3, -1, -1) * 2.0 - 1.0, objects])
    posterior = model.encode(pictures).latent_dist
    draws = normal((2, *posterior.mean.shape), seed, "vae-noise", step).to(pictures.device)
    strength = torch.rand(len(pictures), 1, 1, 1, generator=generator(seed, "vae-strength", step)) * _MAX_NOISE
    strength[len(shadows) :] = 0.0  # the flow makes shadows; object latents come from the encoder
    # Each channel by its own deviation: by the common one, a channel that starts small drowns and stays unused.
    strength = strength.to(pictures.device) * posterior.mean[: len(shadows)].detach().std(dim=(0, 2, 3), keepdim=True)
    latents = posterior.mean + posterior.std * draws[0] + strength * draws[1]
    decoded = (model.decode(latents).sample + 1.0) / 2.0

    ours, target = decoded[: len(shadows)], shadows.expand(-1, 3, -1, -1)
    # Decoding clamps, so below 0 on black costs little: the background can be exactly 0 under latent noise.
    clamped = ours.clamp(0.0, 1.0)
    error = clamped - target + 0.1 * (ours - clamped)
    iou = torch.minimum(clamped, target).flatten(1).sum(1) / torch.maximum(clamped, target).flatten(1).sum(1).add(1.0)
    has_shadow = (target.flatten(1).sum(1) > 1.0).float()
    shadow = error.abs().mean() + 10.0 * error.square().mean() + _IOU_WEIGHT * ((1.0 - iou) * has_shadow).mean()
    difference = decoded[len(shadows) :] - (objects + 1.0) / 2.0
    objects_loss = difference.abs().mean() + 10.0 * difference.square().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss = shadow + objects_loss + _KL_WEIGHT * kl
    return {"loss": loss, "shadow": shadow, "object": objects_loss, "kl": kl}


@torch.no_grad()
def _modes(model: Any, pictures: Sequence[Tensor]) -> Tensor:
    """Unscaled posterior modes (N, 4, h, w) of N pictures (3, H, W)."""
    device = next(model.parameters()).device
    return torch.cat([model.encode(picture[None].to(device)).latent_dist.mode() for picture in pictures])


@torch.no_grad()
def _balance(model: Any, latents: Tensor) -> None:
    """Give every channel of `latents` mean 0 and one common deviation, by the 1 x 1 convolutions around the latent.

    What is decoded stays the same and the file stays of SDXL's class. The flow starts from noise of mean 0 and equal
    deviations; an offset would be one more thing to learn, and R^2 does not count it.
    """
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    factor = latents.var(dim=(0, 2, 3)).mean().sqrt() / std
    into, out_of = model.quant_conv, model.post_quant_conv
    into.weight[:LATENT_CHANNELS] *= factor.view(-1, 1, 1, 1)
    into.bias[:LATENT_CHANNELS] = (into.bias[:LATENT_CHANNELS] - mean) * factor
    into.bias[LATENT_CHANNELS:] += 2.0 * factor.log()  # the posterior's log variance
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight /= factor.view(1, -1, 1, 1)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block is through: a reader never sees half of it.

    It is made at once: where nothing can be written, no time is lost on training.
    """
    place = Path(os.path.realpath(out))
    with _writing(out):
        if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
            raise UserError(f"{out}: already exists and is not an empty folder; give another --out or remove it")
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with _writing(out):
            os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Inside, what the disk refuses is a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out}: cannot be written ({error}); give another place or free the disk") from error
