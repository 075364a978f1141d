"""Train a small autoencoder of SDXL's class on the pictures of a task's data set.

It stands in for SDXL's own VAE where that is not available: the same class, 8 times smaller latents of 4 channels, so
everything around it runs unchanged. `shadowlab/assets/vae` and `vae-albedo` next to it were made by this function.

Legend: B batch, H W pixels, h = H / 8, w = W / 8. Pictures are RGB in [-1, 1].
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from diagnostics.files import replace_text
from shadowlab.data import SampleSet, Split, split_by_object
from shadowlab.encoded_batch import DOWNSCALE
from shadowlab.errors import UserError
from shadowlab.interruption import signals
from shadowlab.models import WEIGHTS_NAME, ImageVae, load_vae
from shadowlab.stages.train_vae.latents import balance, modes
from shadowlab.stages.train_vae.learner import Asked, VaeLearner, build_learner
from shadowlab.stages.train_vae.stock import Quality, Stock
from shadowlab.training import watched_step

REPORT_NAME = "report.json"
VALIDATION_FRACTION = 0.1  # of the objects

_WINDOW_STEPS = 0.8  # share of the steps that see half-size windows around the content: four times cheaper
_NUM_SCALING_SAMPLES = 512  # training samples whose latents set the scale


@dataclass(frozen=True)
class VaeReport:
    """What `train_vae` did and reached; also written to `report.json`.

    Attributes:
        data, fingerprint: name and digest of the data set.
        steps, seed, batch_size, learning_rate, image_size: as asked for.
        num_train_objects, held_out_objects: the split by object.
        first_loss, last_loss: mean over the first tenth of the steps (windows) and the last (whole pictures).
        num_parameters, file_bytes: of the autoencoder, of its safetensors file.
        target_latent_std, latent_std: unscaled, of the training targets, and of all pictures together.
        scaling_factor: 1 / target_latent_std, since a model's data are latents of targets.
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
    target_latent_std: float
    latent_std: float
    scaling_factor: float
    held_out: Quality
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
    stock: Stock[Any],
    on_log: Callable[[dict[str, Any]], None] | None = None,
    device: str = "cpu",
) -> VaeReport:
    """Train, measure on held-out objects, write `out` in diffusers' layout with `report.json`.

    Args:
        data: a data set as the task takes it; a tenth of its objects is held out.
        out: absent or empty folder; it appears only once it is complete.
        steps: optimizer steps, at least 1.
        seed: weights, batches, augmentation and noise are functions of it.
        batch_size: pictures a step, at least 2.
        learning_rate: peak of AdamW's, at most 10, after warm-up over 5 % of the steps; falls to 0 along a cosine.
        image_size: S, pixels, a multiple of 8.
        stock: what of the task's data is trained on, and how it is judged.
        on_log: called about every hundredth of the steps, and after the first and last, with step, loss, its terms,
            grad_norm, learning_rate and seconds.
        device: where to train, such as `cpu` or `cuda`.

    Raises:
        UserError: `out` holds something or cannot be written (found before training), a number is out of range, or
            the data set cannot be used.
        NonFiniteError: loss or gradient is not finite; it says where that was born, and nothing is written.
    """
    asked = Asked(steps, seed, batch_size, learning_rate, image_size)
    dataset = stock.samples(data, image_size)
    split = split_by_object(dataset.object_ids, VALIDATION_FRACTION, seed)
    read = lru_cache(maxsize=1024)(dataset.__getitem__)

    with _new_folder(out) as folder:
        learner = build_learner(asked, torch.device(device), stock.start)
        start = time.monotonic()
        losses = _train(learner, asked, stock, read, split.train, on_log)
        seconds = time.monotonic() - start
        deviations = _set_scale(learner.model, stock, [read(i) for i in split.train[:_NUM_SCALING_SAMPLES]])
        with _writing(out):
            learner.model.save_pretrained(folder, safe_serialization=True)
        vae = load_vae(str(folder)).to(device)
        report = _measured(asked, stock, dataset, split, losses, deviations, vae, folder / WEIGHTS_NAME, seconds)
        with _writing(out):
            replace_text(folder / REPORT_NAME, json.dumps(asdict(report), indent=2) + "\n")
    return report


def _measured(
    asked: Asked,
    stock: Stock[Any],
    dataset: SampleSet[Any],
    split: Split,
    losses: Sequence[float],
    deviations: tuple[float, float],
    vae: ImageVae,
    file: Path,
    seconds: float,
) -> VaeReport:
    """losses: of every step. deviations: as `_set_scale` returns. file: the weights."""
    tenth = max(1, asked.steps // 10)
    return VaeReport(
        data=dataset.name,
        fingerprint=dataset.fingerprint(),
        **asdict(asked),
        num_train_objects=len({dataset.object_ids[i] for i in split.train}),
        held_out_objects=sorted({dataset.object_ids[i] for i in split.validation}),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        num_parameters=vae.num_parameters,
        file_bytes=file.stat().st_size,
        target_latent_std=deviations[0],
        latent_std=deviations[1],
        scaling_factor=vae.scaling_factor,
        held_out=stock.measure(vae, dataset, split.validation, asked.seed),
        seconds=seconds,
    )


def _train(
    learner: VaeLearner,
    asked: Asked,
    stock: Stock[Any],
    read: Callable[[int], Any],
    indices: Sequence[int],
    on_log: Callable[[dict[str, Any]], None] | None,
) -> list[float]:
    """The loss of every step. indices: of the samples to train on."""
    half = max(DOWNSCALE, asked.image_size // 2 // DOWNSCALE * DOWNSCALE)
    start, losses, steps, seed = time.monotonic(), [], asked.steps, asked.seed
    for step in range(steps):
        signals.stop_if_asked()
        side = half if step < _WINDOW_STEPS * steps else asked.image_size
        found = stock.batch(read, indices, step, asked.batch_size, side, seed)
        batch = {name: pictures.to(learner.processes.device) for name, pictures in found.items()}
        terms: dict[str, Tensor] = {}
        loss = partial(_loss, learner.model, stock, batch, step, seed, terms)
        update = watched_step(learner, [loss], step, batch=batch)
        losses.append(update.loss)
        if on_log is not None and (step % max(1, steps // 100) == 0 or step == steps - 1):
            values = {name: float(term) for name, term in terms.items()} | {"grad_norm": update.grad_norm}
            seconds = time.monotonic() - start
            on_log({"step": step, **values, "learning_rate": update.learning_rate, "seconds": seconds})
    learner.watch.detach()
    return losses


def _loss(
    model: Any, stock: Stock[Any], batch: Mapping[str, Tensor], step: int, seed: int, terms: dict[str, Tensor]
) -> Tensor:
    """The loss, (1,). `terms` gets its terms."""
    found = stock.loss_terms(model, batch, step, seed)
    terms.update({name: term.detach() for name, term in found.items()})
    return found["loss"].view(1)


def _set_scale(model: Any, stock: Stock[Any], samples: list[Any]) -> tuple[float, float]:
    """Balance the channels and set the scaling factor. Returns the deviations of unscaled latents: of the targets, and
    of targets and all else together."""
    model.eval()
    targets, others = zip(*(stock.pictures(sample) for sample in samples), strict=True)
    balance(model, modes(model, targets))
    both = modes(model, [*targets, *others])
    target_std, both_std = float(both[: len(samples)].std()), float(both.std())
    model.register_to_config(scaling_factor=1.0 / target_std)
    return target_std, both_std


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder next to `out` that takes its name when the block is through: a reader never sees half of it.

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
