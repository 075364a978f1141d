"""The albedo task next to its specification: what `check-forward` compares. A `TaskReference`.

Legend: B batch, S image size, h w latents (S/8), E width of cross-attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.models import VPrediction, loss_where_known
from shadowlab.quantities import Quantity
from shadowlab.tasks import specification
from shadowlab.tasks.albedo import golden, reference
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.albedo.pictures import latent_mask
from shadowlab.tasks.albedo.samples import AlbedoBatch, AlbedoSample
from shadowlab.tasks.colour import to_linear, to_srgb
from shadowlab.tasks.reference import ObjectiveReference, RawVae

_HERE = "shadowlab/tasks/albedo"
_VAE = "shadowlab/models/vae.py, ImageVae"
_PROMPT_WIDTH = 64  # of the tiny model, which golden runs train
_ROLES = ("beauty", "albedo", "valid")


class AlbedoReference:
    """See `TaskReference`. options: the run's own, of which the model's are kept. seed: the run's."""

    image_size = golden.SIDE
    layouts: tuple[str, ...] = ("folder", "list")
    judging_place = f"{_HERE}/metrics.py, judged"

    def __init__(self, options: AlbedoOptions, seed: int) -> None:
        self.options: Mapping[str, Any] = {"model": options.model.model_dump(mode="json")}
        self._space, self._seed = options.model.space, seed
        self.objective: ObjectiveReference = _objective(options)

    # Samples

    def ids(self, layout: str) -> list[str]:
        """In a folder each object has two samples, in the list, too: there a folder each."""
        name = "golden_{0:d}" if layout == "folder" else "object_{1:d}__shot_{0:d}_beauty"
        return [name.format(i, i // 2) for i in range(golden.COUNT)]

    def objects(self, layout: str) -> list[str]:
        name = "object {:d}" if layout == "folder" else "object_{:d}"
        return [name.format(i // 2) for i in range(golden.COUNT)]

    def write(self, layout: str, folder: Path) -> str:
        ids = self.ids(layout)
        pairs = {name: self._of(layout, name) for name in ids}
        objects = dict(zip(ids, self.objects(layout), strict=True))
        return (golden.write_folder if layout == "folder" else golden.write_list)(pairs, objects, folder)

    def read(self, layout: str, name: str, sample: AlbedoSample) -> Iterator[Quantity]:
        wanted = self._pictures(layout, name)
        reader = "folder.py, _entry" if layout == "folder" else "file_list.py, index_list"
        objects = dict(zip(self.ids(layout), self.objects(layout), strict=True))
        yield Quantity(f"{name}: its id", f"{_HERE}/{reader}", sample.id, name)
        yield Quantity(f"{name}: its object", f"{_HERE}/{reader}", sample.object_id, objects[name])
        yield Quantity(f"{name}: its colour space", f"{_HERE}/pictures.py, make_sample", sample.space, self._space)
        for role in _ROLES:
            tolerance = 0.0 if role == "valid" else 1e-5
            place = f"{_HERE}/pictures.py, make_sample"
            yield Quantity(f"{name}: {role} picture", place, getattr(sample, role), wanted[role], tolerance)

    def collated(self, layout: str, names: Sequence[str], batch: AlbedoBatch) -> Iterator[Quantity]:
        place = f"{_HERE}/samples.py, collate"
        yield Quantity("ids of a batch", place, list(batch.ids), list(names))
        yield Quantity("colour space of a batch", place, batch.space, self._space)
        for role in _ROLES:
            wanted = torch.stack([self._pictures(layout, name)[role] for name in names])
            yield Quantity(f"{role} of a batch", place, getattr(batch, role), wanted, 1e-5)

    # Latents and conditions

    def encoded(self, layout: str, names: Sequence[str], vae: RawVae) -> dict[str, Tensor]:
        stacked = {role: torch.stack([self._pictures(layout, name)[role] for name in names]) for role in _ROLES}
        factors = vae.scaling_factor, vae.shift_factor
        albedo, beauty = (specification.latents(stacked[role], vae.encode, *factors) for role in ("albedo", "beauty"))
        told = specification.random_prompt(self._seed, _PROMPT_WIDTH).expand(len(names), -1, -1)
        return {
            "data": albedo,
            "concatenated": beauty,
            "tokens": told.to(albedo.device),
            "valid": reference.latent_mask(stacked["valid"]).to(albedo.device),
        }

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        task = f"{_HERE}/task.py, AlbedoTask"
        return {
            "albedo latent (data)": (tensors["data"], f"{task}.encode_part"),
            "beauty latent": (tensors["concatenated"], f"{task}.encode_part"),
            "valid latents": (tensors["valid"], f"{task}.encode_part"),
            "empty prompt": (tensors["tokens"], f"{task}.assemble"),
        }

    def decoded(self, latents: Tensor, vae: RawVae) -> Tensor:
        return specification.decoded(latents, vae.decode, vae.scaling_factor, vae.shift_factor)

    def judged(self, layout: str, names: Sequence[str], prediction: Tensor) -> dict[str, Tensor]:
        found = []
        for name, p in zip(names, prediction.cpu(), strict=True):
            own = self._pictures(layout, name)
            found.append(reference.metrics(p, own["albedo"], own["valid"][0] > 0, self._space))
        return {name: torch.tensor([one[name] for one in found]) for name in found[0]}

    # Functions of numbers alone

    def functions(self, task: Any, vae: RawVae) -> Iterator[Quantity]:
        levels = torch.linspace(0, 1, 1025)
        place = "shadowlab/tasks/colour.py"
        linear, srgb = specification.linear_of(levels.double()), specification.srgb_of(levels.double())
        yield Quantity("linear values of sRGB", f"{place}, to_linear", to_linear(levels), linear.float(), 1e-6)
        yield Quantity("sRGB values of linear", f"{place}, to_srgb", to_srgb(levels), srgb.float(), 1e-6)
        valid = torch.stack([self._pictures("list", name)["valid"] for name in self.ids("list")[:3]])
        covered = reference.latent_mask(valid)
        yield Quantity("valid latents", f"{_HERE}/pictures.py, latent_mask", latent_mask(valid), covered, 0.0)
        yield from self._known_loss(covered)
        pictures = torch.stack([self._pictures("folder", name)["beauty"] for name in self.ids("folder")[:2]])
        factors = vae.scaling_factor, vae.shift_factor
        found = specification.latents(pictures.to(task.vae.device), vae.encode, *factors)
        with torch.no_grad():
            yield Quantity("latents of a picture", f"{_VAE}.encode", task.vae.encode(pictures * 2 - 1), found, 1e-4)
            back = vae.decode(found / factors[0] + factors[1])
            yield Quantity("pictures of latents", f"{_VAE}.decode", task.vae.decode(found), back, 1e-4)
            place = f"{_HERE}/task.py, AlbedoTask.decode"
            yield Quantity("albedos of latents", place, task.decode(found), self.decoded(found, vae), 1e-4)

    def _known_loss(self, valid: Tensor) -> Iterator[Quantity]:
        numbers = torch.Generator().manual_seed(5)
        noise, data, other = torch.randn(3, len(valid), 4, *valid.shape[-2:], generator=numbers)
        t = torch.tensor([0.0, 0.3, 0.8])
        objective = VPrediction()
        seen = loss_where_known(objective, other, noise, data, t, valid)
        wanted = specification.known_loss(other, objective.target(noise, data, t), valid)
        yield Quantity(
            "loss where the albedo is known", "shadowlab/models/objective.py, loss_where_known", seen, wanted
        )

    def metrics(self, task: Any) -> Iterator[Quantity]:
        truths = [self._pictures("list", name) for name in self.ids("list")[:3]]
        truth, valid = (torch.stack([one[role] for one in truths]) for role in ("albedo", "valid"))
        batch = self._judged_batch(truth, valid)
        constant = _srgb_batch(torch.full((1, 3, 32, 32), 0.2))
        closed = {"rmse": 0.3, "si_rmse": 0.0, "psnr": 10.457575, "ssim": 0.6897621}
        grey = dict(task.judge(torch.full((1, 3, 32, 32), 0.5), constant))
        for name, value in closed.items():
            place = f"{_HERE}/metrics.py, judged"
            yield Quantity(f"{name} of two grey pictures", place, 1 + grey[name], torch.tensor([1 + value]), 1e-5)
        for text, made in (("the truth", truth), ("a mirrored truth", truth.flip(-1)), ("black", truth * 0)):
            wanted = [
                reference.metrics(p, g, v[0] > 0, self._space) for p, g, v in zip(made, truth, valid, strict=True)
            ]
            for name, values in task.judge(made, batch).items():
                right = torch.tensor([one[name] for one in wanted])
                yield Quantity(f"{name} of {text}", self.judging_place, 1 + values, 1 + right, 1e-4)
        judged = {text: task.judge(made, batch) for text, made in (("best", truth), ("worst", truth * 0))}
        for metric in task.metrics:
            best, worst = (judged[text][metric.name].mean() for text in ("best", "worst"))
            better = "higher" if best > worst else "lower"
            said = "higher" if metric.higher_is_better else "lower"
            yield Quantity(f"which {metric.name} is better", f"{_HERE}/metrics.py, its metrics", said, better)

    def _judged_batch(self, truth: Tensor, valid: Tensor) -> AlbedoBatch:
        names = [str(i) for i in range(len(truth))]
        return AlbedoBatch(names, names, truth, truth, valid, self._space)

    @cache  # noqa: B019 - one for a process
    def _of(self, layout: str, name: str) -> golden.GoldenPair:
        return golden.golden_pair(self.ids(layout).index(name), is_square=layout == "folder")

    @cache  # noqa: B019
    def _pictures(self, layout: str, name: str) -> dict[str, Tensor]:
        return self._of(layout, name).pictures(self._space)


def _srgb_batch(truth: Tensor) -> AlbedoBatch:
    names = [str(i) for i in range(len(truth))]
    return AlbedoBatch(names, names, truth, truth, torch.ones_like(truth[:, :1]), "srgb")


def _objective(options: AlbedoOptions) -> ObjectiveReference:
    model = options.model
    plain = specification.Flow() if model.objective == "flow" else specification.Diffusion(model.objective)
    return reference.Coloured(plain, model.noise_strength) if model.noise_strength else plain
