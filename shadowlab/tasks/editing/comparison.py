"""The editing task next to its specification: what `check-forward` compares. A `TaskReference`.

Legend: B batch, S image size, h w latents (S/8), E width of cross-attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.quantities import Quantity
from shadowlab.tasks import specification
from shadowlab.tasks.colour import to_linear, to_srgb
from shadowlab.tasks.editing import golden, reference
from shadowlab.tasks.editing.colour_difference import ciede2000, lab_of
from shadowlab.tasks.editing.options import EditingOptions
from shadowlab.tasks.editing.painting import painted
from shadowlab.tasks.editing.samples import EditingBatch, EditingSample
from shadowlab.tasks.editing.white_balance import balanced, cast
from shadowlab.tasks.reference import ObjectiveReference, RawVae

_HERE = "shadowlab/tasks/editing"
_VAE = "shadowlab/models/vae.py, ImageVae"
_PROMPT_WIDTH = 64  # of the tiny model, which golden runs train
_ROLES = ("input", "target", "mask", "valid", "gains")
_EXACT = {"mask", "valid"}


class EditingReference:
    """See `TaskReference`. options: the run's own, of which the model's and `keep_input` are kept. seed: the run's."""

    image_size = golden.SIDE
    layouts: tuple[str, ...] = ("folder", "list")
    judging_place = f"{_HERE}/metrics.py, judged"

    def __init__(self, options: EditingOptions, seed: int) -> None:
        model = options.model.model_dump(mode="json")
        self.options: Mapping[str, Any] = {"model": model, "keep_input": options.keep_input}
        self._edit, self._painting, self._keep = options.model.edit, options.model.painting, options.keep_input
        self._seed = seed
        self.objective: ObjectiveReference = specification.Flow()

    # Samples

    def ids(self, layout: str) -> list[str]:
        """In the list each object has a folder with two samples."""
        name = "golden_{0:d}" if layout == "folder" else "object_{1:d}__shot_{0:d}"
        return [name.format(i, i // 2) for i in range(golden.COUNT)]

    def objects(self, layout: str) -> list[str]:
        """In a folder each sample is an object of its own."""
        return self.ids(layout) if layout == "folder" else [f"object_{i // 2:d}" for i in range(golden.COUNT)]

    def write(self, layout: str, folder: Path) -> str:
        samples = {name: self._of(layout, name) for name in self.ids(layout)}
        if layout == "folder":
            return golden.write_folder(samples, folder)
        return golden.write_list(samples, dict(zip(self.ids(layout), self.objects(layout), strict=True)), folder)

    def read(self, layout: str, name: str, sample: EditingSample) -> Iterator[Quantity]:
        wanted = self._pictures(layout, name)
        reader = "folder.py, index_folder" if layout == "folder" else "listing.py, index_list"
        objects = dict(zip(self.ids(layout), self.objects(layout), strict=True))
        yield Quantity(f"{name}: its id", f"{_HERE}/{reader}", sample.id, name)
        yield Quantity(f"{name}: its object", f"{_HERE}/{reader}", sample.object_id, objects[name])
        place = f"{_HERE}/pictures.py, make_sample"
        for role in _ROLES:
            seen = getattr(sample, role)
            if role == "gains":
                seen, right = seen.nan_to_num(-1.0), wanted[role].nan_to_num(-1.0)
            else:
                right = wanted[role]
            yield Quantity(f"{name}: {role}", place, seen, right, 0.0 if role in _EXACT else 1e-5)

    def collated(self, layout: str, names: Sequence[str], batch: EditingBatch) -> Iterator[Quantity]:
        place = f"{_HERE}/samples.py, collate"
        yield Quantity("ids of a batch", place, list(batch.ids), list(names))
        for role in ("input", "target", "mask", "valid"):
            wanted = torch.stack([self._pictures(layout, name)[role] for name in names])
            yield Quantity(f"{role} of a batch", place, getattr(batch, role), wanted, 1e-5)

    # Latents and conditions

    def encoded(self, layout: str, names: Sequence[str], vae: RawVae) -> dict[str, Tensor]:
        stacked = {role: torch.stack([self._pictures(layout, name)[role] for name in names]) for role in _ROLES}
        factors = vae.scaling_factor, vae.shift_factor
        data, given = (specification.latents(stacked[role], vae.encode, *factors) for role in ("target", "input"))
        told = specification.random_prompt(self._seed, _PROMPT_WIDTH).expand(len(names), -1, -1)
        shares = {role: reference.covered(stacked[role]).to(data.device) for role in ("mask", "valid")}
        beside = [given, shares["mask"]] if self._edit == "object-removal" else [given]
        return {
            "data": data,
            "concatenated": torch.cat(beside, dim=1),
            "tokens": told.to(data.device),
            "valid": (shares["valid"] > 0.999999).float(),
        }

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        task = f"{_HERE}/task.py, EditingTask"
        given = tensors["concatenated"]
        found = {
            "target latent (data)": (tensors["data"], f"{task}.encode_part"),
            "input latent": (given[:, :4], f"{task}.encode_part"),
            "valid latents": (tensors["valid"], f"{task}.encode_part"),
            "empty prompt": (tensors["tokens"], f"{task}.assemble"),
        }
        return found | ({"mask": (given[:, 4:], f"{task}.assemble")} if given.shape[1] > 4 else {})

    def decoded(self, latents: Tensor, vae: RawVae) -> Tensor:
        return specification.decoded(latents, vae.decode, vae.scaling_factor, vae.shift_factor)

    def judged(self, layout: str, names: Sequence[str], prediction: Tensor) -> dict[str, Tensor]:
        found = [
            self._metrics(p, self._pictures(layout, name)) for name, p in zip(names, prediction.cpu(), strict=True)
        ]
        return {name: torch.tensor([one[name] for one in found]) for name in found[0]}

    # Functions of numbers alone

    def functions(self, task: Any, vae: RawVae) -> Iterator[Quantity]:
        levels = torch.linspace(0, 1, 1025)
        place = "shadowlab/tasks/colour.py"
        linear, srgb = specification.linear_of(levels.double()), specification.srgb_of(levels.double())
        yield Quantity("linear values of sRGB", f"{place}, to_linear", to_linear(levels), linear.float(), 1e-6)
        yield Quantity("sRGB values of linear", f"{place}, to_srgb", to_srgb(levels), srgb.float(), 1e-6)
        targets = torch.stack([self._pictures("list", name)["target"] for name in self.ids("list")[:3]])
        yield from _of_pictures(targets)
        factors = vae.scaling_factor, vae.shift_factor
        found = specification.latents(targets.to(task.vae.device), vae.encode, *factors)
        with torch.no_grad():
            yield Quantity("latents of a picture", f"{_VAE}.encode", task.vae.encode(targets * 2 - 1), found, 1e-4)
            back = vae.decode(found / factors[0] + factors[1])
            yield Quantity("pictures of latents", f"{_VAE}.decode", task.vae.decode(found), back, 1e-4)
            place = f"{_HERE}/task.py, EditingTask.decode"
            yield Quantity("pictures in [0, 1]", place, task.decode(found), self.decoded(found, vae), 1e-4)

    def metrics(self, task: Any) -> Iterator[Quantity]:
        place = self.judging_place
        closed = _CLOSED[self._edit]
        for name, values in task.judge(torch.full((1, 3, 32, 32), 0.5), _grey_batch()).items():
            if self._keep or name not in _KEPT:
                yield Quantity(
                    f"{name} of two grey pictures", place, 1 + values, torch.tensor([1 + closed[name]]), 1e-4
                )
        own = [self._pictures("list", name) for name in self.ids("list")[:3]]
        names = [str(i) for i in range(len(own))]
        batch = EditingBatch(names, names, **{role: torch.stack([one[role] for one in own]) for role in _ROLES})
        for text, p in (
            ("the truth", batch.target),
            ("a mirrored truth", batch.target.flip(-1)),
            ("black", batch.target * 0),
        ):
            wanted = [self._metrics(one, pictures) for one, pictures in zip(p, own, strict=True)]
            for name, values in task.judge(p, batch).items():
                right = torch.tensor([one[name] for one in wanted])
                yield Quantity(f"{name} of {text}", place, 1 + values, 1 + right, 1e-4)
        judged = {text: task.judge(p, batch) for text, p in (("best", batch.target), ("worst", batch.target * 0))}
        for metric in task.metrics:
            best, worst = (judged[text][metric.name].mean() for text in ("best", "worst"))
            better = "higher" if best > worst else "lower"
            said = "higher" if metric.higher_is_better else "lower"
            yield Quantity(f"which {metric.name} is better", f"{_HERE}/metrics.py, its metrics", said, better)

    def _metrics(self, p: Tensor, pictures: dict[str, Tensor]) -> dict[str, float]:
        return reference.metrics(self._edit, p, pictures, keep_input=self._keep)

    @cache  # noqa: B019 - one for a process
    def _of(self, layout: str, name: str) -> golden.GoldenSample:
        number = self.ids(layout).index(name)
        return golden.golden_sample(self._edit, number, is_square=layout == "folder")

    @cache  # noqa: B019
    def _pictures(self, layout: str, name: str) -> dict[str, Tensor]:
        is_made = self._edit == "paint-to-image" and layout == "list"
        found = self._of(layout, name).pictures(self._painting if is_made else None)
        # A folder says nothing of gains.
        return found | ({"gains": torch.full((3,), torch.nan)} if layout == "folder" else {})


_CLOSED = {
    "white-balance": {
        "rmse": 0.3,
        "mse": 0.09,
        "angular_error": 0.0,
        "delta_e": 27.2529,
        "painted_rmse": 0.3,
        "painted_angular_error": 0.0,
    },
    "object-removal": {
        "inside_rmse": 0.3,
        "inside_psnr": 10.457575,
        "outside_rmse": 0.0,
        "painted_outside_rmse": 0.3,
    },
    "paint-to-image": {"rmse": 0.3, "psnr": 10.457575, "edge_agreement": 1.0},
}
"""Of a picture of 0.5 where 0.2 is right: 10.457575 is -20 log10 0.3, Delta E that of L* 53.39 and 21.25."""
_KEPT = {"outside_rmse"}


def _grey_batch() -> EditingBatch:
    """A picture of 0.2 that is to stay so; the mask is its upper half."""
    grey = torch.full((1, 3, 32, 32), 0.2)
    mask = torch.zeros(1, 1, 32, 32)
    mask[:, :, :16] = 1
    unknown = torch.full((1, 3), torch.nan)
    return EditingBatch(["grey"], ["grey"], grey, grey, mask, torch.ones_like(mask), unknown)


def _of_pictures(targets: Tensor) -> Iterator[Quantity]:
    """Gains, colour differences and paintings of (3, 3, S, S)."""
    gains = torch.tensor([[1.6, 1.0, 0.7], [0.8, 1.0, 1.3], [2.2, 1.0, 0.5]])
    light = specification.linear_of(targets.double()) * gains[..., None, None]
    right = specification.srgb_of(light.clamp(max=1.0)).float()
    place = f"{_HERE}/white_balance.py"
    under = cast(targets, gains)
    yield Quantity("a picture under gains", f"{place}, cast", under, right, 1e-5)
    counts = torch.ones_like(targets[:, :1])
    seen = balanced(under, targets, counts)
    wanted = torch.stack([reference.corrected(x, y, c[0] > 0) for x, y, c in zip(under, targets, counts, strict=True)])
    yield Quantity("a picture under the gains that undo others", f"{place}, balanced", seen, wanted, 1e-5)
    place = f"{_HERE}/colour_difference.py"
    labs = torch.stack(reference.lab(targets[0]))
    yield Quantity("L*a*b* of a picture", f"{place}, lab_of", lab_of(targets[0]), labs, 1e-4)
    seen = ciede2000(lab_of(targets[0]), lab_of(targets[1]), dim=0).flatten()
    wanted = reference.delta_e(targets[0].flatten(1), targets[1].flatten(1))
    yield Quantity("Delta E 2000 of two pictures", f"{place}, ciede2000", seen, wanted, 1e-4)
    for kind in ("flat", "sketch"):
        wanted = torch.stack([reference.painting_of(target, kind) for target in targets])
        yield Quantity(f"a {kind} painting", f"{_HERE}/painting.py, painted", painted(targets, kind), wanted, 1e-5)
