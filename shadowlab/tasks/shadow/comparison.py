"""The shadow task next to its specification: what `check-forward` compares. A `TaskReference`.

Legend: B batch, S image size, h w latents (S/8).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.models import mask_to_latent
from shadowlab.quantities import Quantity, same
from shadowlab.tasks.reference import ObjectiveReference, RawVae
from shadowlab.tasks.shadow import golden, reference
from shadowlab.tasks.shadow.light import embed_light
from shadowlab.tasks.shadow.metrics import per_image_metrics
from shadowlab.tasks.shadow.samples import Batch, Sample

_COUNT = len(golden.LIGHTS)
_READERS = {"object": "read_object", "mask": "read_mask", "shadow": "read_shadow"}
_VAE = "shadowlab/models/vae.py, ImageVae"
_METRICS = "shadowlab/metrics.py"


class ShadowReference:
    """See `TaskReference`."""

    image_size = golden.SIDE
    options: Mapping[str, Any] = {"light_sweep": False}
    layouts: tuple[str, ...] = ("folder", "benchmark")
    objective: ObjectiveReference = reference.Flow()
    judging_place = "shadowlab/tasks/shadow/metrics.py, per_image_metrics"

    def __init__(self) -> None:
        self._golden = [golden.golden_sample(i) for i in range(_COUNT)]

    # Samples

    def ids(self, layout: str) -> list[str]:
        """In a folder each object has two samples, in the benchmark three in a row."""
        name = "golden_{:d}" if layout == "folder" else "softness_control_{:03d}"
        return [name.format(i) for i in range(_COUNT)]

    def objects(self, layout: str) -> list[str]:
        each = 2 if layout == "folder" else 3
        name = "object {:d}" if layout == "folder" else "softness_control/object_{:03d}"
        return [name.format(i // each) for i in range(_COUNT)]

    def write(self, layout: str, folder: Path) -> str:
        ids = self.ids(layout)
        samples = dict(zip(ids, self._golden, strict=True))
        if layout == "folder":
            return golden.write_folder(samples, dict(zip(ids, self.objects(layout), strict=True)), folder)
        return golden.write_benchmark(samples, folder)

    def read(self, layout: str, name: str, sample: Sample) -> Iterator[Quantity]:
        known = self._of(layout, name)
        wanted = known.pictures
        seen = {"object": sample.object_image, "mask": sample.mask, "shadow": sample.shadow, "light": sample.light}
        reader = "folder.py, _read_entry" if layout == "folder" else "benchmark.py, _read_entry"
        here = f"shadowlab/tasks/shadow/{reader}"
        objects = dict(zip(self.ids(layout), self.objects(layout), strict=True))
        yield Quantity(f"{name}: its id", here, sample.id, name)
        yield Quantity(f"{name}: its object", here, sample.object_id, objects[name])
        yield Quantity(f"{name}: light", here, sample.light, wanted["light"], 1e-7)
        for role in ("mask", "object", "shadow"):
            place = _picture_place(role, known.is_resized, seen, wanted)
            tolerance = 0.0 if role == "mask" else 2e-6
            yield Quantity(f"{name}: {role} picture", place, seen[role], wanted[role], tolerance)

    def collated(self, layout: str, names: Sequence[str], batch: Batch) -> Iterator[Quantity]:
        place = "shadowlab/tasks/shadow/samples.py, collate"
        yield Quantity("ids of a batch", place, list(batch.ids), list(names))
        seen = {"object": batch.object_image, "mask": batch.mask, "shadow": batch.shadow, "light": batch.light}
        for role, tensor in seen.items():
            wanted = torch.stack([self._of(layout, name).pictures[role] for name in names])
            yield Quantity(f"{role} of a batch", place, tensor, wanted, 2e-6)

    # Latents and conditions

    def encoded(self, layout: str, names: Sequence[str], vae: RawVae) -> dict[str, Tensor]:
        one = [self._of(layout, name) for name in names]
        stacked = {role: torch.stack([s.pictures[role] for s in one]) for role in ("object", "mask", "shadow")}
        factors = vae.scaling_factor, vae.shift_factor
        objects = reference.latents(stacked["object"], vae.encode, *factors)
        return {
            "data": reference.shadow_latents(stacked["shadow"], vae.encode, *factors),
            "concatenated": torch.cat([objects, reference.latent_mask(stacked["mask"]).to(objects.device)], dim=1),
            "embedding": torch.stack([reference.light_embedding(*s.light) for s in one]),
        }

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        joined, light = tensors["concatenated"], tensors["embedding"]
        task = "shadowlab/tasks/shadow/task.py, ShadowTask"
        return {
            "shadow latent (data)": (tensors["data"], f"{task}.encode_part"),
            "object latent": (joined[:, :4], f"{task}.encode_part"),
            "latent mask": (joined[:, 4:], f"{task}.encode_part"),
            "light embedding": (light, f"{task}.assemble"),
        }

    def decoded(self, latents: Tensor, vae: RawVae) -> Tensor:
        return reference.decoded(latents, vae.decode, vae.scaling_factor, vae.shift_factor)

    def judged(self, layout: str, names: Sequence[str], prediction: Tensor) -> dict[str, Tensor]:
        truths = [self._of(layout, name).pictures["shadow"][0] for name in names]
        found = [reference.metrics(p.double(), g.double()) for p, g in zip(prediction[:, 0].cpu(), truths, strict=True)]
        return {name: torch.tensor([one[name] for one in found]) for name in found[0]}

    # Functions of numbers alone

    def functions(self, task: Any, vae: RawVae) -> Iterator[Quantity]:
        lights = torch.tensor([*golden.LIGHTS, (17.0, 123.0, 6.0), (44.0, 181.0, 2.2)])
        wanted = torch.stack([reference.light_embedding(*light) for light in lights.tolist()])
        place = "shadowlab/tasks/shadow/light.py, embed_light"
        for column, name in enumerate(("theta", "phi", "size")):
            part = slice(column * 256, (column + 1) * 256)
            yield Quantity(f"embedding of {name}", place, embed_light(lights)[:, part], wanted[:, part])
        pictures = {role: torch.stack([s.pictures[role] for s in self._golden[:2]]) for role in ("object", "mask")}
        pictures["shadow"] = torch.stack([s.pictures["shadow"] for s in self._golden[:2]])
        covered = reference.latent_mask(pictures["mask"])
        yield Quantity(
            "latent mask", "shadowlab/models/vae.py, mask_to_latent", mask_to_latent(pictures["mask"]), covered
        )
        device, factors = task.vae.device, (vae.scaling_factor, vae.shift_factor)
        found = reference.latents(pictures["object"].to(device), vae.encode, *factors)
        with torch.no_grad():
            yield Quantity("latents of a picture", f"{_VAE}.encode", task.vae.encode(pictures["object"]), found, 1e-4)
            grey = reference.shadow_latents(pictures["shadow"].to(device), vae.encode, *factors)
            yield Quantity(
                "latents of a map", f"{_VAE}.encode_grey", task.vae.encode_grey(pictures["shadow"]), grey, 1e-4
            )
            back = vae.decode(found / factors[0] + factors[1])
            yield Quantity("pictures of latents", f"{_VAE}.decode", task.vae.decode(found), back, 1e-4)
            maps = self.decoded(grey, vae)
            yield Quantity("maps of latents", f"{_VAE}.decode_grey", task.vae.decode_grey(grey), maps, 1e-4)
            yield Quantity(
                "maps of latents", "shadowlab/tasks/shadow/task.py, ShadowTask.decode", task.decode(grey), maps, 1e-4
            )

    def metrics(self, task: Any) -> Iterator[Quantity]:
        truth = torch.stack([sample.pictures["shadow"] for sample in self._golden[:3]])
        batch = _judged_batch(truth)
        constant = torch.full((1, 1, 32, 32), 0.2)
        closed = {"rmse": 0.3, "si_rmse": 0.0, "zncc": 0.0, "soft_iou": 0.4, "psnr": 10.457575, "ssim": 0.6897621}
        seen = per_image_metrics(torch.full((1, 1, 32, 32), 0.5), constant)
        for name, value in closed.items():
            yield Quantity(f"{name} of 0.5 against 0.2", _place(name), float(seen[name]), value, 1e-5 if value else 1.0)
        ceiling = {"rmse": 0.0, "si_rmse": 0.0, "zncc": 1.0, "soft_iou": 1.0, "psnr": 100.0, "ssim": 1.0}
        for name, value in ceiling.items():
            found = per_image_metrics(truth, truth)[name]
            yield Quantity(f"{name} of the truth", _place(name), found, torch.full((3,), value))
        black = per_image_metrics(torch.zeros_like(truth), truth)
        floor = {"soft_iou": torch.zeros(3), "zncc": torch.zeros(3), "rmse": truth.square().mean(dim=(1, 2, 3)).sqrt()}
        for name, wanted in floor.items():
            yield Quantity(f"{name} of all black", _place(name), black[name], wanted)
        other = (truth.flip(-1) * 0.7 + 0.1).clamp(0, 1)
        wanted_of = [reference.metrics(p[0].double(), g[0].double()) for p, g in zip(other, truth, strict=True)]
        together = per_image_metrics(other, truth)
        for name in wanted_of[0]:
            wanted = torch.tensor([one[name] for one in wanted_of])
            yield Quantity(f"{name} of each picture by itself", _place(name), together[name], wanted, 1e-4)
        judged, place = task.judge(other, batch), "shadowlab/tasks/shadow/task.py, ShadowTask.judge"
        for name, values in together.items():
            yield Quantity(f"{name} as it is judged", place, judged.get(name), values)
        target = task.target(batch)
        yield Quantity("the truth", "shadowlab/tasks/shadow/task.py, ShadowTask.target", target, truth, 0.0)
        for metric in (*task.metrics, *task.evaluation.metrics):
            best, worst = (task.evaluation.judge(one, batch)[metric.name].mean() for one in (truth, truth * 0))
            better = "higher" if best > worst else "lower"
            place = "shadowlab/tasks/shadow/task.py, its metrics"
            yield Quantity(f"which {metric.name} is better", place, _direction(metric.higher_is_better), better)

    def _of(self, layout: str, name: str) -> golden.GoldenSample:
        return self._golden[self.ids(layout).index(name)]


def _place(metric: str) -> str:
    return f"{_METRICS}, {'scale_invariant_rmse' if metric == 'si_rmse' else metric}"


def _direction(higher_is_better: bool) -> str:
    return "higher" if higher_is_better else "lower"


def _judged_batch(truth: Tensor) -> Batch:
    count, side = len(truth), truth.shape[-1]
    blank = torch.zeros(count, 3, side, side)
    return Batch([str(i) for i in range(count)], blank, torch.ones(count, 1, side, side), truth, torch.zeros(count, 3))


def _picture_place(role: str, is_resized: bool, seen: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Where a picture that differs went wrong, from what it looks like."""
    for other in wanted.keys() - {role, "light"}:
        if same(seen[role], wanted[other]):
            return "shadowlab/tasks/shadow/pictures.py, make_sample"
    if role == "object" and seen[role].shape == wanted[role].shape:
        outside = (wanted["mask"] == 0).expand_as(wanted[role])
        if bool((seen[role][outside] != 0).any()) and not same(seen[role], wanted[role]):
            return "shadowlab/data/resizing.py, composite"
    if not is_resized:
        return f"shadowlab/data/decoding.py, {_READERS[role]}"
    return f"shadowlab/data/resizing.py, {'fit_square' if role == 'shadow' else 'fit_object_strips'}"
