"""The insertion task: an object, by its own picture, into the masked region of a target (Chong et al., CatVTON, ICLR
2025), by Stable Diffusion's inpainting UNet, of which self-attention alone trains.

Both pictures share one canvas. The UNet's 9 channels are x_t (4), the mask (1), and latents of what is given (4): of
the target with grey in the mask, and next to it of the object, whose half of the mask is 0.

Legend: B batch, H W pixels, h w latents of one picture (H/8), ch cw those of the canvas (2h w or h 2w), N tokens, D
width of cross-attention.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shadowlab.charts import Chart, of_training_data
from shadowlab.checks import Check, PathTable
from shadowlab.data import Entry, SampleSet, Source
from shadowlab.encoded_batch import LATENT_CHANNELS, Conditions, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import ImageVae, ModelSpec, Objective, load_vae
from shadowlab.settings import Config
from shadowlab.tasks.evaluation import Evaluation
from shadowlab.tasks.exported import Exported
from shadowlab.tasks.insertion import checks
from shadowlab.tasks.insertion.augmentation import InsertionAugmentation
from shadowlab.tasks.insertion.baselines import COPY_PASTE, copy_paste
from shadowlab.tasks.insertion.charts import CHARTS
from shadowlab.tasks.insertion.comparison import InsertionReference
from shadowlab.tasks.insertion.dataset import open_dataset, resolve_path
from shadowlab.tasks.insertion.evaluation import InsertionEvaluation
from shadowlab.tasks.insertion.examination import InsertionExamination
from shadowlab.tasks.insertion.exported import InsertionExported
from shadowlab.tasks.insertion.figures import COLUMNS, comparison_grid, input_picture
from shadowlab.tasks.insertion.generate import Draw, InsertionGenerator
from shadowlab.tasks.insertion.layout import composited, halves, joined, latent_mask, masked_picture
from shadowlab.tasks.insertion.metrics import PSNR_INSIDE, RMSE_INSIDE, per_image_metrics
from shadowlab.tasks.insertion.objectives import objective_of
from shadowlab.tasks.insertion.options import InsertionOptions
from shadowlab.tasks.insertion.pictures import read_prompt
from shadowlab.tasks.insertion.probes import ablations, condition_probes
from shadowlab.tasks.insertion.samples import InsertionBatch, InsertionSample, collate
from shadowlab.tasks.prompt import EmptyPrompt
from shadowlab.tasks.prompt_texts import kept_prompts
from shadowlab.tasks.task import R2, Ablation, Augmentation, Baseline, Criterion, Metric, Probe, Reach
from shadowlab.tasks.validation_set import WithValidation

IN_CHANNELS = 2 * LATENT_CHANNELS + 1


class InsertionTask:
    """A `Task`; see there for what each part is for."""

    name = "insertion"
    spec = ModelSpec(
        in_channels=IN_CHANNELS,
        inputs=("x_t", "mask", "masked picture and object"),
        widening="zero",
        keeps_cross_attention=True,
        sides=("ch", "cw"),
        trainable=("*.attn1.*",),
        published={"sd15-inpainting": (859_535_364, 686), "tiny-inpainting": (4_210_020, 404)},
        published_trainable={"sd15-inpainting": (49_574_080, 80), "tiny-inpainting": (324_384, 50)},
    )
    metrics: tuple[Metric, ...] = (PSNR_INSIDE, RMSE_INSIDE)
    baseline: Baseline | None = Baseline(COPY_PASTE, COPY_PASTE)
    charts: tuple[Chart, ...] = CHARTS
    comparison = " / ".join(COLUMNS)
    sweep_name = "sweep"
    draws_sweep = False
    vae: ImageVae
    latent_parts: Mapping[str, tuple[str, ...]] = {
        "data": ("target",),
        "object": ("object",),
        "masked": ("target", "mask"),
        "mask": ("mask",),
    }

    def __init__(self, config: Config, options: InsertionOptions) -> None:
        self._config, self._options = config, options
        augment, dropout = config.data.augment, options.model.condition_dropout
        changes = augment.is_on or dropout > 0
        self.augmentation: Augmentation | None = (
            InsertionAugmentation(augment, dropout, config.seed) if changes else None
        )
        self.objective: Objective = objective_of(options.model)
        self._empty = EmptyPrompt(config, options.empty_prompt)

    @classmethod
    def options(cls) -> type[InsertionOptions]:
        return InsertionOptions

    @property
    def criterion(self) -> Criterion:
        return Criterion(((R2, self._config.overfit.min_r2), (RMSE_INSIDE, self._options.max_rmse)))

    def load_vae(self, device: torch.device) -> None:
        self.vae = load_vae(self._config.model.vae_source, seed=self._config.seed).to(device)
        self._empty.downloads = True  # as for the VAE; what opens a model that is trained brings its own

    # Data

    def open_data(self, image_size: int | None = None) -> SampleSet[InsertionSample]:
        data = self._config.data
        size = data.image_size if image_size is None else image_size
        found = open_dataset(data.path, size, self._options, self._embedded)
        if isinstance(found, WithValidation) and found.shared:
            self.charts = of_training_data(CHARTS)
        return found

    def _embedded(self, texts: Collection[str]) -> Mapping[str, Source]:
        return kept_prompts(self._config.model.weights, self._empty.width, texts, seed=self._config.seed)

    def find_data(self) -> None:
        resolve_path(self._config.data.path)
        if self._options.validation_path is not None:
            resolve_path(Path(self._options.validation_path).expanduser())

    def examine_data(self, path: str, image_size: int | None, *, renew: bool = False) -> InsertionExamination:
        return InsertionExamination(path, image_size, renew=renew)

    @staticmethod
    def collate(samples: Sequence[InsertionSample]) -> InsertionBatch:
        return collate(samples)

    def own_input(self, given: Mapping[str, Any]) -> tuple[InsertionBatch, str] | None:
        asked = [name for name, value in given.items() if value is not None and name != "sample"]
        if asked:
            raise UserError(
                f"--{asked[0].replace('_', '-')}: an insertion model is checked on rows of its data; give --data FILE"
            )
        return None

    def random_batch(self, count: int) -> InsertionBatch:
        size = self._config.data.image_size
        names = [f"sample {i}" for i in range(count)]
        mask = torch.zeros(count, 1, size, size)
        mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
        pictures = torch.rand(2, count, 3, size, size)
        return InsertionBatch(names, names, pictures[0], pictures[1], mask, torch.ones(count))

    # Latents and conditions

    @torch.no_grad()
    def encode(self, batch: InsertionBatch, positions: Tensor | None = None) -> EncodedBatch:
        """Latents (B, 4, ch, cw) of the canvas; conditions as `assemble`. positions: (B,) int64."""
        positions = torch.arange(len(batch)) if positions is None else positions
        batch = batch.to(self.vae.device)
        latents = {part: self.encode_part(part, batch) for part in self.latent_parts}
        told = {} if batch.prompt is None else {"tokens": batch.prompt}
        return self.assemble(list(batch.ids), positions, latents, {"shown": batch.shown, **told})

    @torch.no_grad()
    def encode_part(self, part: str, batch: InsertionBatch) -> Tensor:
        """data, object, masked (B, 4, h, w), or mask (B, 1, h, w)."""
        if part == "mask":
            return latent_mask(batch.mask)
        if part == "masked":
            return self.vae.encode(masked_picture(batch.target, batch.mask))
        return self.vae.encode((batch.target if part == "data" else batch.object) * 2.0 - 1.0)

    @staticmethod
    def numbers(entry: Entry) -> dict[str, Tensor]:
        """shown, a scalar; tokens (N, D) where the row brings a prompt."""
        source = entry.sources.get("prompt")
        told = {} if source is None else {"tokens": read_prompt(source.read(), source.name)}
        return {"shown": torch.tensor(1.0), **told}

    def assemble(
        self, ids: list[str], positions: Tensor, latents: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
    ) -> EncodedBatch:
        """[mask, given latents] concatenated, (B, 5, ch, cw): the object's half has no mask, and latents of the object,
        0 where it is not shown. Tokens (B, N, D) are the rows' own, or the empty prompt."""
        device, model = self.vae.device, self._options.model
        target, own, masked, mask = (latents[part].to(device) for part in ("data", "object", "masked", "mask"))
        shown = numbers["shown"].to(device).view(-1, 1, 1, 1)
        given = joined(torch.cat([mask, masked], 1), torch.cat([torch.zeros_like(mask), own * shown], 1), model.beside)
        valid = None
        if model.region_weight != 1:
            valid = joined(1.0 + (model.region_weight - 1.0) * mask, torch.ones_like(mask), model.beside)
        told = numbers["tokens"] if "tokens" in numbers else self.prompt.expand(len(ids), -1, -1)
        self._require_width(told, ids)
        conditions = Conditions(concatenated=given, tokens=told.to(device))
        return EncodedBatch(ids, positions, joined(target, own, model.beside), conditions, valid)

    def _require_width(self, told: Tensor, ids: list[str]) -> None:
        if told.shape[-1] != self._empty.width:
            raise UserError(
                f"{ids[0]}: its prompt_embedding is {told.shape[-1]} wide, and the model's cross-attention takes "
                f"{self._empty.width}; take the text encoder of the UNet's own pipeline"
            )

    @property
    def prompt(self) -> Tensor:
        """The empty prompt's embedding, (N, D) float32 on the CPU. Raises UserError as `empty_prompt`."""
        return self._empty.of(self.vae)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, ch, cw) -> the target's half as pictures, (B, 3, H, W) float32 in [0, 1]."""
        target, _ = halves(latents, self._options.model.beside)
        return ((self.vae.decode(target) + 1.0) / 2.0).clamp(0.0, 1.0)

    def finished(self, pictures: Tensor, batch: InsertionBatch) -> Tensor:
        """Decoded pictures (B, 3, H, W), composited: outside the mask every pixel is the given one's, bit for bit."""
        return composited(pictures, batch.target, batch.mask)

    def regions(self, encoded: EncodedBatch) -> dict[str, Tensor]:
        """Parts of the canvas whose loss is reported apart, (B, 1, ch, cw) in {0, 1}."""
        given = encoded.conditions.concatenated
        assert given is not None, "the insertion task concatenates mask and masked latents"
        mask = given[:, :1]
        target, _ = halves(mask, self._options.model.beside)
        return {
            "inserted": mask,
            "target": joined(torch.ones_like(target), torch.zeros_like(target), self._options.model.beside),
        }

    def generator(self, draw: Draw) -> InsertionGenerator:
        """Insertions into a user's own pictures. draw: gives (B, 3, H, W) in [0, 1]."""
        return InsertionGenerator(self, self._config.data.image_size, draw)

    @property
    def exported(self) -> Exported | None:
        return InsertionExported(self.vae, self._options.model, self.prompt)

    # Judgement

    def target(self, batch: InsertionBatch) -> Tensor:
        """The pictures with the object, (B, 3, H, W) float32 in [0, 1]."""
        return batch.target

    def judge(self, prediction: Tensor, batch: InsertionBatch) -> dict[str, Tensor]:
        """`per_image_metrics` of prediction (B, 3, H, W) in [0, 1], each (B,)."""
        device = prediction.device
        return per_image_metrics(prediction, batch.target.to(device), batch.mask.to(device))

    def baselines(self, batch: InsertionBatch) -> dict[str, Tensor]:
        """Copy-paste, (B, 3, H, W)."""
        return {COPY_PASTE: copy_paste(batch)}

    @cached_property
    def evaluation(self) -> Evaluation[InsertionBatch]:
        notes = []
        if self._options.validation_path is not None and self._options.validate_on_training_data:
            notes.append(
                "task_options.validate_on_training_data: this model may have been validated on its training data; "
                "figures on them measure memory"
            )
        found: Any = InsertionEvaluation(tuple(notes))
        return found

    # Probes

    def probes(self, batch: InsertionBatch, encoded: EncodedBatch, reach: Reach) -> list[Probe]:
        """Object, masked picture and mask."""
        return condition_probes(encoded, self._options.model.beside, reach)

    def ablations(self, batch: InsertionBatch, encode: Callable[[InsertionBatch], EncodedBatch]) -> list[Ablation]:
        """Object, masked picture and mask."""
        return ablations(batch, encode)

    def sweep(
        self, batch: InsertionBatch, encoded: EncodedBatch, steps: int
    ) -> dict[str, list[tuple[float, EncodedBatch]]]:
        """Nothing: there is no number that the model is told."""
        return {}

    # Figures

    def input_figure(self, batch: InsertionBatch) -> Tensor:
        """What is given of the first target, next to its object, (3, H, 2W) in [0, 1]."""
        return input_picture(batch)

    def comparison_figure(self, batch: InsertionBatch, prediction: Tensor, max_rows: int) -> Tensor:
        """As `comparison_grid`; prediction (B, 3, H, W)."""
        return comparison_grid(batch, prediction, max_rows=max_rows)

    def sweep_figure(self, batch: InsertionBatch, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
        """Never asked for (3, H', W'): there is no sweep."""
        raise ValueError("an insertion model has nothing to sweep")

    # Checks

    @cached_property
    def reference(self) -> InsertionReference:
        return InsertionReference(self._options, self._config.seed)

    def check_batch(self, batch: InsertionBatch, path: PathTable) -> list[Check]:
        return checks.batch(batch, path)

    def check_encoding(self, batch: InsertionBatch, encoded: EncodedBatch, path: PathTable) -> list[Check]:
        return checks.encoding(self, batch, encoded, path, config=self._config, options=self._options)
