"""The insertion task next to its specification: what `check-forward` compares. A `TaskReference`.

Legend: B batch, S image size, h w latents (S/8), E width of cross-attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.models import Dream, EpsilonPrediction, VPrediction, loss_where_known
from shadowlab.quantities import Quantity
from shadowlab.tasks.insertion import golden, reference
from shadowlab.tasks.insertion.layout import composited, halves, latent_mask
from shadowlab.tasks.insertion.options import InsertionOptions
from shadowlab.tasks.insertion.samples import InsertionBatch, InsertionSample
from shadowlab.tasks.reference import ObjectiveReference, RawVae

_HERE = "shadowlab/tasks/insertion"
_VAE = "shadowlab/models/vae.py, ImageVae"
_PROMPT_WIDTH = 64  # of the tiny model, which golden runs train
_ROLES = ("target", "object", "mask")


class InsertionReference:
    """See `TaskReference`. options: the run's own, of which objective and layout are kept; the loss of golden runs is
    the plain one, and DREAM and weights are compared by themselves. seed: the run's."""

    image_size = golden.SIDE
    layouts: tuple[str, ...] = ("list",)
    judging_place = f"{_HERE}/metrics.py, per_image_metrics"

    def __init__(self, options: InsertionOptions, seed: int) -> None:
        model = options.model
        self.options: Mapping[str, Any] = {"model": {"objective": model.objective, "beside": model.beside}}
        self._model, self._seed = model, seed
        self.objective: ObjectiveReference = reference.Diffusion(model.objective)

    # Samples

    def ids(self, layout: str) -> list[str]:
        return golden.names()

    def objects(self, layout: str) -> list[str]:
        return golden.owners()

    def write(self, layout: str, folder: Path) -> str:
        return golden.write_rows(folder)

    def read(self, layout: str, name: str, sample: InsertionSample) -> Iterator[Quantity]:
        wanted, number = self._pictures(name), golden.names().index(name)
        yield Quantity(f"{name}: its id", f"{_HERE}/file_list.py, index_csv", sample.id, name)
        owner = golden.owners()[number]
        yield Quantity(f"{name}: its object", f"{_HERE}/file_list.py, index_csv", sample.object_id, owner)
        for role in _ROLES:
            place, tolerance = f"{_HERE}/pictures.py, make_sample", 0.0 if role == "mask" else 1e-5
            yield Quantity(f"{name}: {role} picture", place, getattr(sample, role), wanted[role], tolerance)
        yield Quantity(f"{name}: its object is shown", f"{_HERE}/augmentation.py, sample", sample.shown, True)

    def collated(self, layout: str, names: Sequence[str], batch: InsertionBatch) -> Iterator[Quantity]:
        place = f"{_HERE}/samples.py, collate"
        yield Quantity("ids of a batch", place, list(batch.ids), list(names))
        for role in _ROLES:
            yield Quantity(f"{role} of a batch", place, getattr(batch, role), self._stacked(names)[role], 1e-5)

    # Latents and conditions

    def encoded(self, layout: str, names: Sequence[str], vae: RawVae) -> dict[str, Tensor]:
        factors = vae.scaling_factor, vae.shift_factor
        found = reference.encoded(self._stacked(names), vae.encode, *factors, self._model.beside)
        told = reference.random_prompt(self._seed, _PROMPT_WIDTH).expand(len(names), -1, -1)
        return {**found, "tokens": told.to(found["data"].device)}

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        encode, assemble = (f"{_HERE}/task.py, InsertionTask.{name}" for name in ("encode_part", "assemble"))
        (data, own), given = halves(tensors["data"], self._model.beside), tensors["concatenated"]
        target, beside = halves(given, self._model.beside)
        return {
            "target's latents (data)": (data, encode),
            "object's latents (data)": (own, encode),
            "mask in latents": (target[:, :1], encode),
            "masked picture's latents": (target[:, 1:], encode),
            "mask of the object's half": (beside[:, :1], assemble),
            "object's latents (given)": (beside[:, 1:], assemble),
            "canvas": (tensors["data"], assemble),
            "empty prompt": (tensors["tokens"], assemble),
        }

    def decoded(self, latents: Tensor, vae: RawVae) -> Tensor:
        target = reference.first_half(latents, self._model.beside)
        return reference.decoded(target, vae.decode, vae.scaling_factor, vae.shift_factor)

    def judged(self, layout: str, names: Sequence[str], prediction: Tensor) -> dict[str, Tensor]:
        found = []
        for name, p in zip(names, prediction.cpu(), strict=True):
            own = self._pictures(name)
            found.append(reference.metrics(p, own["target"], own["mask"][0] > 0))
        return {name: torch.tensor([one[name] for one in found]) for name in found[0]}

    # Functions of numbers alone

    def functions(self, task: Any, vae: RawVae) -> Iterator[Quantity]:
        pictures = self._stacked(golden.names()[:3])
        mask, target, own = pictures["mask"], pictures["target"], pictures["object"]
        covered = reference.latent_mask(mask)
        yield Quantity("mask in latents", f"{_HERE}/layout.py, latent_mask", latent_mask(mask), covered, 0.0)
        seen, wanted = composited(own, target, mask), own * mask + target * (1 - mask)
        yield Quantity("a composited picture", f"{_HERE}/layout.py, composited", seen, wanted, 0.0)
        yield from _weighted_loss(reference.canvas(covered, torch.zeros_like(covered), self._model.beside))
        yield from _rectified()
        factors = vae.scaling_factor, vae.shift_factor
        found = reference.encoded(pictures, vae.encode, *factors, self._model.beside)["data"]
        with torch.no_grad():
            first = vae.encode(target * 2 - 1).to(found.device)
            place = f"{_VAE}.encode"
            own_latents = task.vae.encode(target.to(task.vae.device) * 2 - 1)
            yield Quantity("latents of a picture", place, own_latents, (first - factors[1]) * factors[0], 1e-4)
            place = f"{_HERE}/task.py, InsertionTask.decode"
            yield Quantity("target of a canvas", place, task.decode(found), self.decoded(found, vae), 1e-4)

    def metrics(self, task: Any) -> Iterator[Quantity]:
        names = golden.names()[3:6]
        pictures = self._stacked(names)
        truth, batch = pictures["target"], _batch(pictures)
        flat = {"target": torch.full((1, 3, 32, 32), 0.2), "mask": torch.ones(1, 1, 32, 32)}
        closed = {"rmse": 0.3, "psnr": 10.457575, "ssim": 0.6897621}
        grey = task.judge(torch.full((1, 3, 32, 32), 0.5), _batch({**flat, "object": flat["target"]}))
        for name, value in closed.items():
            for one in (name, f"{name}_inside"):
                wanted = torch.tensor([1 + value])
                yield Quantity(f"{one} of two grey pictures", self.judging_place, 1 + grey[one], wanted, 1e-5)
        for text, made in (("the truth", truth), ("a mirrored truth", truth.flip(-1)), ("black", truth * 0)):
            right = self.judged("list", names, made)
            for name, values in task.judge(made, batch).items():
                yield Quantity(f"{name} of {text}", self.judging_place, 1 + values, 1 + right[name], 1e-4)
        judged = {text: task.judge(made, batch) for text, made in (("best", truth), ("worst", truth * 0))}
        for metric in task.metrics:
            best, worst = (judged[text][metric.name].mean() for text in ("best", "worst"))
            said = "higher" if metric.higher_is_better else "lower"
            better = "higher" if best > worst else "lower"
            yield Quantity(f"which {metric.name} is better", f"{_HERE}/metrics.py, its metrics", said, better)

    def _stacked(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {role: torch.stack([self._pictures(name)[role] for name in names]) for role in _ROLES}

    @cache  # noqa: B019 - one for a process
    def _pictures(self, name: str) -> dict[str, Tensor]:
        return golden.golden_row(golden.names().index(name)).pictures


def _batch(pictures: Mapping[str, Tensor]) -> InsertionBatch:
    count = len(pictures["target"])
    names = [str(i) for i in range(count)]
    return InsertionBatch(names, names, pictures["target"], pictures["object"], pictures["mask"], torch.ones(count))


def _weighted_loss(mask: Tensor) -> Iterator[Quantity]:
    numbers = torch.Generator().manual_seed(5)
    noise, data, other = torch.randn(3, len(mask), 4, *mask.shape[-2:], generator=numbers)
    t = torch.linspace(0, 0.8, len(mask))
    objective, weight = VPrediction(), 1 + 3 * mask
    seen = loss_where_known(objective, other, noise, data, t, weight)
    wanted = reference.weighted_loss(other, objective.target(noise, data, t), weight)
    yield Quantity("a weighted loss", "shadowlab/models/objective.py, loss_where_known", seen, wanted)


def _rectified() -> Iterator[Quantity]:
    numbers = torch.Generator().manual_seed(6)
    noise, data, found = torch.randn(3, 3, 4, 6, 5, generator=numbers)
    t = torch.tensor([0.1, 0.5, 0.95])
    sigma = torch.tensor([reference.Diffusion("epsilon").scales(float(one))[1] for one in t])
    for power in (0.0, 1.0, 2.5):
        seen = Dream(EpsilonPrediction(), power).rectified(lambda x, times: found, noise, data, t)
        wanted = reference.rectified(noise, found, sigma, power)
        yield Quantity("DREAM's noise", "shadowlab/models/dream.py, Dream.rectified", seen, wanted)
