"""The shadow task: object, mask and light to the grey shadow map of the ground (Tasar et al., arXiv 2412.11972).

Legend: B batch, H W pixels, h w latents (H/8). Light = (theta degrees, phi degrees, size scene units).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from shadowlab.charts import Chart
from shadowlab.checks import Check, PathTable
from shadowlab.data import Entry, SampleSet
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions, EncodedBatch
from shadowlab.models import ImageVae, ModelSpec, Objective, RectifiedFlow, load_vae, mask_to_latent
from shadowlab.settings import Config, Section, key
from shadowlab.tasks.exported import Exported
from shadowlab.tasks.shadow import checks
from shadowlab.tasks.shadow.ablations import ablations
from shadowlab.tasks.shadow.augmentation import ShadowAugmentation
from shadowlab.tasks.shadow.charts import CHARTS, WITH_INTENSITY
from shadowlab.tasks.shadow.check import ShadowExamination
from shadowlab.tasks.shadow.comparison import ShadowReference
from shadowlab.tasks.shadow.dataset import open_dataset, resolve_path
from shadowlab.tasks.shadow.evaluation import ShadowEvaluation
from shadowlab.tasks.shadow.exported import ShadowExported
from shadowlab.tasks.shadow.figures import comparison_grid, sweep_grid
from shadowlab.tasks.shadow.generate import ShadowGenerator
from shadowlab.tasks.shadow.light import (
    EMBEDDING_DIM,
    RANGES,
    SCALAR_DIM,
    embed_intensity,
    embed_light,
    far_lights,
    near_light,
)
from shadowlab.tasks.shadow.metrics import per_image_metrics
from shadowlab.tasks.shadow.own_picture import requested_picture
from shadowlab.tasks.shadow.samples import Batch, Sample, collate
from shadowlab.tasks.shadow.view import default_fit, read_fit
from shadowlab.tasks.task import R2, Ablation, Augmentation, Baseline, Criterion, Metric, Probe, Reach

SOFT_IOU = Metric("soft_iou", "soft IoU")
RMSE = Metric("rmse", "RMSE", higher_is_better=False, form=".4f")


class ShadowOptions(Section):
    """`task_options` of the shadow task."""

    min_soft_iou: Annotated[float, Field(ge=0, le=1)] = key(0.80, decides="nothing")
    """Soft intersection over union of generated and true shadows that overfit must reach."""
    light_sweep: bool = key(True, decides="nothing")
    """Validation also draws one held-out sample under 5 values each of theta, phi and size: 15 one-step generations."""
    view: str | None = key(None, decides="nothing", examples=["view.json"])
    """Camera of the baselines and control measures of `evaluate`: a file of `shadowlab fit-baselines`; null: the one
    fitted on the pictures of `data render`."""


class ShadowTask:
    """A `Task`; see there for what each part is for."""

    name = "shadow"
    spec = ModelSpec(
        in_channels=LATENT_CHANNELS + LATENT_CHANNELS + 1,
        inputs=("x_t", "object", "mask"),
        widening="zero",
        embedding_dim=EMBEDDING_DIM,
        embedding="light embedding",
        published={"sdxl": (2_019_019_844, 1_190)},
    )
    objective: Objective = RectifiedFlow()
    metrics: tuple[Metric, ...] = (SOFT_IOU, RMSE)
    baseline: Baseline | None = Baseline("black", "all black")
    charts: tuple[Chart, ...] = CHARTS
    comparison = "object / target / one step / error"
    sweep_name = "light-sweep"
    vae: ImageVae

    def __init__(self, config: Config, options: ShadowOptions) -> None:
        self._config, self._options = config, options
        augment = config.data.augment
        self.augmentation: Augmentation | None = ShadowAugmentation(augment, config.seed) if augment.is_on else None
        if augment.intensity:
            self.spec = replace(self.spec, embedding_dim=EMBEDDING_DIM + SCALAR_DIM, published={})
            self.charts = WITH_INTENSITY
        self.latent_parts: Mapping[str, tuple[str, ...]] = {"data": ("shadow",), "concatenated": ("object", "mask")}

    @classmethod
    def options(cls) -> type[ShadowOptions]:
        return ShadowOptions

    @property
    def criterion(self) -> Criterion:
        return Criterion(((R2, self._config.overfit.min_r2), (SOFT_IOU, self._options.min_soft_iou)))

    @property
    def draws_sweep(self) -> bool:
        return self._options.light_sweep

    def load_vae(self, device: torch.device) -> None:
        self.vae = load_vae(self._config.model.vae_source, seed=self._config.seed).to(device)

    # Data

    def open_data(self, image_size: int | None = None) -> SampleSet[Sample]:
        data = self._config.data
        return open_dataset(data.path, data.image_size if image_size is None else image_size)

    def find_data(self) -> None:
        resolve_path(self._config.data.path)

    def examine_data(self, path: str, image_size: int | None, *, renew: bool = False) -> ShadowExamination:
        return ShadowExamination(path, image_size, renew=renew)

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Batch:
        return collate(samples)

    def own_input(self, given: Mapping[str, Any]) -> tuple[Batch, str] | None:
        size = self._config.data.image_size
        picture = requested_picture(given, size)
        if picture is None:
            return None
        batch = Batch(
            ids=[picture.id],
            object_image=picture.object_image[None],
            mask=picture.mask[None],
            shadow=torch.zeros(1, 1, size, size),
            light=picture.light[None],
        )
        return batch, "the picture has no shadow map: an empty one stands in for the target"

    def random_batch(self, count: int) -> Batch:
        size = self._config.data.image_size
        return Batch(
            ids=[f"sample {i}" for i in range(count)],
            object_image=torch.rand(count, 3, size, size) * 2 - 1,
            mask=torch.ones(count, 1, size, size),
            shadow=torch.rand(count, 1, size, size),
            light=torch.tensor([[(low + high) / 2 for low, high in RANGES.values()]]).expand(count, -1),
        )

    # Latents and conditions

    @torch.no_grad()
    def encode(self, batch: Batch, positions: Tensor | None = None) -> EncodedBatch:
        """Latents (B, 4, h, w) of the shadow maps; conditions as `assemble`. positions: (B,) int64."""
        numbers = {"light": batch.light}  # stays on the CPU, where it is checked: no synchronisation later
        batch = batch.to(self.vae.device)
        positions = torch.arange(len(batch.ids)) if positions is None else positions
        latents = {part: self.encode_part(part, batch) for part in self.latent_parts}
        return self.assemble(list(batch.ids), positions, latents, numbers)

    @torch.no_grad()
    def encode_part(self, part: str, batch: Batch) -> Tensor:
        """data (B, 4, h, w) or concatenated (B, 5, h, w)."""
        if part == "data":
            return self.vae.encode_grey(batch.shadow)
        return torch.cat([self.vae.encode(batch.object_image), mask_to_latent(batch.mask)], dim=1)

    @staticmethod
    def numbers(entry: Entry) -> dict[str, Tensor]:
        """light: (3,) float32."""
        return {"light": torch.tensor(entry.values, dtype=torch.float32)}

    def assemble(
        self, ids: list[str], positions: Tensor, latents: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
    ) -> EncodedBatch:
        """Object latents and masks concatenated, (B, 5, h, w); light (B, 3) embedded, (B, 768)."""
        device = self.vae.device
        concatenated, embedding = latents["concatenated"].to(device), self._embedded(numbers["light"])
        return EncodedBatch(ids, positions, latents["data"].to(device), Conditions(concatenated, embedding))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> shadow maps (B, 1, H, W) float32 in [0, 1]."""
        return self.vae.decode_grey(latents)

    def generator(self, draw: Callable[[EncodedBatch, int, int], Tensor]) -> ShadowGenerator:
        """Shadow maps of a user's own objects. draw: gives (1, 1, S, S) in [0, 1]."""
        return ShadowGenerator(self, self._config.data.image_size, draw)

    @property
    def exported(self) -> Exported | None:
        return ShadowExported(self.vae, tells_intensity=bool(self._config.data.augment.intensity))

    def _embedded(self, light: Tensor) -> Tensor:
        """(B, 3) -> (B, 768) on the VAE's device; of a model that is told an intensity (B, 1024), and lights (B, 3)
        have intensity 1."""
        light = light.cpu()
        embedding = embed_light(light[:, :3])
        if self._config.data.augment.intensity:
            intensity = light[:, 3] if light.shape[1] > 3 else torch.ones(len(light))
            embedding = torch.cat([embedding, embed_intensity(intensity)], dim=1)
        return embedding.to(self.vae.device)

    # Judgement

    def target(self, batch: Batch) -> Tensor:
        """Shadow maps, (B, 1, H, W) float32 in [0, 1]."""
        return batch.shadow

    def judge(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`per_image_metrics` of prediction (B, 1, H, W) in [0, 1], each (B,)."""
        return per_image_metrics(prediction, self.target(batch).to(prediction.device))

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """No shadow anywhere, (B, 1, H, W)."""
        return {"black": torch.zeros_like(batch.shadow)}

    @cached_property
    def evaluation(self) -> ShadowEvaluation:
        """Raises UserError where the file of the view cannot be read."""
        view = self._options.view
        return ShadowEvaluation(default_fit() if view is None else read_fit(Path(view).expanduser()))

    # Probes

    def probes(self, batch: Batch, encoded: EncodedBatch, reach: Reach) -> list[Probe]:
        """theta, phi and size, each alone; `far` turns phi by half a turn and takes the others to their farther end.
        And the intensity, where the model is told it, at the lowest that it is trained on."""
        light = batch.light.cpu()
        if reach == "far":
            others = far_lights(light)
        else:
            near = near_light(light)
            others = {
                name: torch.cat([light[:, :column], near[:, column : column + 1], light[:, column + 1 :]], dim=1)
                for column, name in enumerate(RANGES)
            }
        reference = encoded.with_conditions(embedding=self._embedded(light))
        probes = [
            Probe(
                name,
                reference,
                encoded.with_conditions(embedding=self._embedded(others[name])),
                f"from {float(light[0, column]):g} to {float(others[name][0, column]):g}",
                slice(column * SCALAR_DIM, (column + 1) * SCALAR_DIM),
            )
            for column, name in enumerate(RANGES)
        ]
        if share := self._config.data.augment.intensity:
            weak = self._embedded(torch.cat([light, torch.full((len(light), 1), 1.0 - share)], dim=1))
            encoded = encoded.with_conditions(embedding=weak)
            change, part = f"from 1 to {1.0 - share:g}", slice(EMBEDDING_DIM, EMBEDDING_DIM + SCALAR_DIM)
            probes.append(Probe("intensity", reference, encoded, change, part))
        return probes

    def ablations(self, batch: Batch, encode: Callable[[Batch], EncodedBatch]) -> list[Ablation]:
        """Object, mask, theta, phi and size."""
        return ablations(batch, encode)

    def sweep(self, batch: Batch, encoded: EncodedBatch, steps: int) -> dict[str, list[tuple[float, EncodedBatch]]]:
        """theta, phi and size over their ranges, both ends among the values, but 360 degrees of phi, which are 0."""
        swept: dict[str, list[tuple[float, EncodedBatch]]] = {}
        for column, (name, (low, high)) in enumerate(RANGES.items()):
            swept[name] = []
            for value in torch.linspace(low, high, steps + (name == "phi"))[:steps].tolist():
                light = batch.light.cpu().clone()
                light[:, column] = value
                swept[name].append((value, encoded.with_conditions(embedding=self._embedded(light))))
        return swept

    # Figures

    def input_figure(self, batch: Batch) -> Tensor:
        """The first sample: object, then mask, (3, H, 2 W) in [0, 1]."""
        return torch.cat([(batch.object_image[0] + 1) / 2, batch.mask[0].expand(3, -1, -1)], dim=2)

    def comparison_figure(self, batch: Batch, prediction: Tensor, max_rows: int) -> Tensor:
        """As `comparison_grid`; prediction (B, 1, H, W)."""
        return comparison_grid(batch, self.target(batch), prediction, max_rows=max_rows)

    def sweep_figure(self, batch: Batch, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
        """As `sweep_grid`, of the first sample's object."""
        return sweep_grid(batch.object_image[0], sweep)

    # Checks

    @cached_property
    def reference(self) -> ShadowReference:
        return ShadowReference()

    def check_batch(self, batch: Batch, path: PathTable) -> list[Check]:
        checks.add_inputs(path, batch)
        return [checks.background_is_constant(batch)]

    def check_encoding(self, batch: Batch, encoded: EncodedBatch, path: PathTable) -> list[Check]:
        return checks.encoding(self, batch, encoded, path, trained_vae=not self._config.model.vae_is_random)
