"""The albedo task: a finished picture to the colour of its surfaces (Ke et al., Marigold, 2024), by Stable Diffusion's
UNet with 8 input channels whose cross-attention is told the empty prompt.

Legend: B batch, H W pixels, h w latents (H/8), N tokens, D width of cross-attention.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.charts import Chart, of_training_data
from shadowlab.checks import Check, PathTable
from shadowlab.data import Entry, SampleSet
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import ImageVae, ModelSpec, Objective, load_vae
from shadowlab.settings import Config
from shadowlab.tasks.albedo import checks
from shadowlab.tasks.albedo.augmentation import AlbedoAugmentation
from shadowlab.tasks.albedo.baselines import beauty
from shadowlab.tasks.albedo.charts import CHARTS
from shadowlab.tasks.albedo.comparison import AlbedoReference
from shadowlab.tasks.albedo.dataset import has_masks, open_dataset, resolve_path
from shadowlab.tasks.albedo.evaluation import AlbedoEvaluation
from shadowlab.tasks.albedo.examination import AlbedoExamination
from shadowlab.tasks.albedo.exported import AlbedoExported
from shadowlab.tasks.albedo.figures import comparison_grid, input_picture
from shadowlab.tasks.albedo.generate import AlbedoGenerator
from shadowlab.tasks.albedo.metrics import PSNR, RMSE, SI_RMSE, per_image_metrics
from shadowlab.tasks.albedo.objectives import objective_of
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.albedo.pictures import latent_mask
from shadowlab.tasks.albedo.probes import ablations, beauty_probe
from shadowlab.tasks.albedo.samples import AlbedoBatch, AlbedoSample, collate
from shadowlab.tasks.evaluation import Evaluation
from shadowlab.tasks.exported import Exported
from shadowlab.tasks.prompt import EmptyPrompt
from shadowlab.tasks.task import R2, Ablation, Augmentation, Baseline, Criterion, Metric, Probe, Reach
from shadowlab.tasks.validation_set import WithValidation

IN_CHANNELS = 2 * LATENT_CHANNELS


class AlbedoTask:
    """A `Task`; see there for what each part is for."""

    name = "albedo"
    spec = ModelSpec(
        in_channels=IN_CHANNELS,
        inputs=("x_t", "beauty"),
        widening="repeat",
        keeps_cross_attention=True,
        exports_conditions_first=True,
        published={"sd21": (865_922_244, 686), "sd15": (859_532_484, 686)},
    )
    metrics: tuple[Metric, ...] = (PSNR, SI_RMSE)
    baseline: Baseline | None = Baseline("beauty", "the beauty")
    charts: tuple[Chart, ...] = CHARTS
    comparison = "beauty / albedo / one step / error"
    sweep_name = "sweep"
    draws_sweep = False
    vae: ImageVae

    def __init__(self, config: Config, options: AlbedoOptions) -> None:
        """Raises UserError where options do not fit the rest of the configuration."""
        if options.model.one_step and any(t > 0 for t in config.validation.timesteps):
            raise UserError(
                "task_options.model.one_step: such a model knows t = 0 alone; add --set validation.timesteps=[0.0]"
            )
        self._config, self._options = config, options
        augment = config.data.augment
        self.augmentation: Augmentation | None = AlbedoAugmentation(augment, config.seed) if augment.is_on else None
        self.objective: Objective = objective_of(options.model, self._decoded)
        self._prompt = EmptyPrompt(config, options.empty_prompt)
        # Where the data set has no masks, what is valid follows from the albedo's size.
        known = ("albedo", "valid") if has_masks(config.data.path) else ("albedo",)
        self.latent_parts: Mapping[str, tuple[str, ...]] = {
            "data": ("albedo",),
            "concatenated": ("beauty",),
            "valid": known,
        }

    @classmethod
    def options(cls) -> type[AlbedoOptions]:
        return AlbedoOptions

    @property
    def criterion(self) -> Criterion:
        return Criterion(((R2, self._config.overfit.min_r2), (RMSE, self._options.max_rmse)))

    def load_vae(self, device: torch.device) -> None:
        self.vae = load_vae(self._config.model.vae_source, seed=self._config.seed).to(device)
        self._prompt.downloads = True  # as for the VAE; what opens a model that is trained brings its own

    # Data

    def open_data(self, image_size: int | None = None) -> SampleSet[AlbedoSample]:
        data = self._config.data
        found = open_dataset(data.path, data.image_size if image_size is None else image_size, self._options)
        if isinstance(found, WithValidation) and found.shared:
            self.charts = of_training_data(CHARTS)
        return found

    def find_data(self) -> None:
        resolve_path(self._config.data.path)
        if self._options.validation_path is not None:
            resolve_path(Path(self._options.validation_path).expanduser())

    def examine_data(self, path: str, image_size: int | None, *, renew: bool = False) -> AlbedoExamination:
        return AlbedoExamination(path, image_size, self._options, renew=renew)

    @staticmethod
    def collate(samples: Sequence[AlbedoSample]) -> AlbedoBatch:
        return collate(samples)

    def own_input(self, given: Mapping[str, Any]) -> tuple[AlbedoBatch, str] | None:
        asked = [name for name, value in given.items() if value is not None and name != "sample"]
        if asked:
            raise UserError(f"--{asked[0].replace('_', '-')}: an albedo model is given a picture, and no light or mask")
        return None

    def random_batch(self, count: int) -> AlbedoBatch:
        size = self._config.data.image_size
        names = [f"sample {i}" for i in range(count)]
        return AlbedoBatch(
            ids=names,
            objects=names,
            beauty=torch.rand(count, 3, size, size),
            albedo=torch.rand(count, 3, size, size),
            valid=torch.ones(count, 1, size, size),
            space=self._options.model.space,
        )

    # Latents and conditions

    @torch.no_grad()
    def encode(self, batch: AlbedoBatch, positions: Tensor | None = None) -> EncodedBatch:
        """Latents (B, 4, h, w) of the albedos; conditions as `assemble`. positions: (B,) int64."""
        if batch.space != self._options.model.space:
            raise UserError(
                f"samples are in {batch.space}, and the model works in {self._options.model.space}; convert them once, "
                "where they are read"
            )
        positions = torch.arange(len(batch)) if positions is None else positions
        batch = batch.to(self.vae.device)
        latents = {part: self.encode_part(part, batch) for part in self.latent_parts}
        return self.assemble(list(batch.ids), positions, latents, {})

    @torch.no_grad()
    def encode_part(self, part: str, batch: AlbedoBatch) -> Tensor:
        """data, concatenated (B, 4, h, w), or valid (B, 1, h, w)."""
        if part == "valid":
            return latent_mask(batch.valid)
        return self.vae.encode((batch.albedo if part == "data" else batch.beauty) * 2.0 - 1.0)

    @staticmethod
    def numbers(entry: Entry) -> dict[str, Tensor]:
        """None: nothing but pictures, (B, ...) of latents, is known of a sample."""
        return {}

    def assemble(
        self, ids: list[str], positions: Tensor, latents: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
    ) -> EncodedBatch:
        """Beauty latents concatenated, (B, 4, h, w); the empty prompt for each sample, (B, N, D)."""
        device = self.vae.device
        told = self.prompt.to(device).expand(len(ids), -1, -1)
        conditions = Conditions(concatenated=latents["concatenated"].to(device), tokens=told)
        return EncodedBatch(ids, positions, latents["data"].to(device), conditions, latents["valid"].to(device))

    @property
    def prompt(self) -> Tensor:
        """The empty prompt's embedding, (N, D) float32 on the CPU.

        Raises:
            UserError: as `empty_prompt`.
        """
        return self._prompt.of(self.vae)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> albedos (B, 3, H, W) float32 in [0, 1], in the model's colour space."""
        return ((self._decoded(latents) + 1.0) / 2.0).clamp(0.0, 1.0)

    def _decoded(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, H, W) in about [-1, 1]; gradients flow through."""
        if not hasattr(self, "vae"):  # a step that is replayed
            self.load_vae(latents.device)
        return self.vae.decode(latents)

    def generator(self, draw: Callable[[EncodedBatch, int, int], Tensor]) -> AlbedoGenerator:
        """Albedos of a user's own pictures. draw: gives (B, 3, H, W) in [0, 1]."""
        return AlbedoGenerator(self, self._config.data.image_size, self._options.model.space, draw)

    @property
    def exported(self) -> Exported | None:
        options = self._options.model
        return AlbedoExported(self.vae, options.objective, options.space, self.prompt)

    # Judgement

    def target(self, batch: AlbedoBatch) -> Tensor:
        """Albedos, (B, 3, H, W) float32 in [0, 1], in the batch's colour space."""
        return batch.albedo

    def judge(self, prediction: Tensor, batch: AlbedoBatch) -> dict[str, Tensor]:
        """`per_image_metrics` of prediction (B, 3, H, W) in [0, 1], each (B,)."""
        device = prediction.device
        return per_image_metrics(prediction, batch.albedo.to(device), batch.valid.to(device), batch.space)

    def baselines(self, batch: AlbedoBatch) -> dict[str, Tensor]:
        """The beauty itself, (B, 3, H, W)."""
        return {"beauty": beauty(batch)}

    @cached_property
    def evaluation(self) -> Evaluation[AlbedoBatch]:
        options, path = self._options, resolve_path(self._config.data.path)
        notes = []
        if options.validation_path is not None and options.validate_on_training_data:
            notes.append(
                "task_options.validate_on_training_data: this model may have been validated on its training data; "
                "figures on them measure memory"
            )
        found: Any = AlbedoEvaluation(options.model.space, path.parent if path.is_file() else path, tuple(notes))
        return found

    # Probes

    def probes(self, batch: AlbedoBatch, encoded: EncodedBatch, reach: Reach) -> list[Probe]:
        """The beauty: a paler one, or its opposite."""
        return [beauty_probe(encoded, reach)]

    def ablations(self, batch: AlbedoBatch, encode: Callable[[AlbedoBatch], EncodedBatch]) -> list[Ablation]:
        """The beauty."""
        return ablations(batch, encode)

    def sweep(
        self, batch: AlbedoBatch, encoded: EncodedBatch, steps: int
    ) -> dict[str, list[tuple[float, EncodedBatch]]]:
        """Nothing: there is no number that the model is told."""
        return {}

    # Figures

    def input_figure(self, batch: AlbedoBatch) -> Tensor:
        """The first sample's beauty, (3, H, W) in [0, 1]."""
        return input_picture(batch)

    def comparison_figure(self, batch: AlbedoBatch, prediction: Tensor, max_rows: int) -> Tensor:
        """As `comparison_grid`; prediction (B, 3, H, W)."""
        return comparison_grid(batch, prediction, max_rows=max_rows)

    def sweep_figure(self, batch: AlbedoBatch, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
        """Never asked for (3, H', W'): there is no sweep."""
        raise ValueError("an albedo model has nothing to sweep")

    # Checks

    @cached_property
    def reference(self) -> AlbedoReference | None:
        """None of a model whose loss is that of pictures: no specification of it is written yet."""
        return None if self._options.model.one_step else AlbedoReference(self._options, self._config.seed)

    def check_batch(self, batch: AlbedoBatch, path: PathTable) -> list[Check]:
        return checks.batch(batch, path)

    def check_encoding(self, batch: AlbedoBatch, encoded: EncodedBatch, path: PathTable) -> list[Check]:
        return checks.encoding(self, batch, encoded, path, config=self._config, options=self._options)
