"""The editing task: a picture to the same picture edited, by a UNet that is given the input, and the mask where the
edit has one, next to the noise; its cross-attention is told the empty prompt. Rectified flow (Liu et al., 2023).

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
from shadowlab.encoded_batch import Conditions, EncodedBatch
from shadowlab.errors import UserError
from shadowlab.models import ImageVae, ModelSpec, Objective, RectifiedFlow, load_vae, mask_to_latent
from shadowlab.settings import Config
from shadowlab.tasks.editing import checks, probes
from shadowlab.tasks.editing.augmentation import EditingAugmentation
from shadowlab.tasks.editing.charts import charts_of
from shadowlab.tasks.editing.comparison import EditingReference
from shadowlab.tasks.editing.dataset import has_inputs, open_dataset, resolve_path
from shadowlab.tasks.editing.evaluation import EditingEvaluation
from shadowlab.tasks.editing.examination import EditingExamination
from shadowlab.tasks.editing.exported import EditingExported
from shadowlab.tasks.editing.figures import comparison_grid, input_picture
from shadowlab.tasks.editing.generate import EditingGenerator
from shadowlab.tasks.editing.metrics import BOUND, RANKING, judged
from shadowlab.tasks.editing.options import EditingOptions
from shadowlab.tasks.editing.samples import EditingBatch, EditingSample, collate
from shadowlab.tasks.evaluation import Evaluation
from shadowlab.tasks.exported import Exported
from shadowlab.tasks.prompt import EmptyPrompt
from shadowlab.tasks.task import R2, Ablation, Augmentation, Baseline, Criterion, Metric, Probe, Reach
from shadowlab.tasks.validation_set import WithValidation

_PUBLISHED = {8: {"sd15": (859_532_484, 686)}, 9: {"sd15": (859_535_364, 686)}}
"""Channels -> parameters and tensors; those of 9 channels are Stable Diffusion 1.5 inpainting's."""


class EditingTask:
    """A `Task`; see there for what each part is for."""

    name = "editing"
    baseline: Baseline | None = Baseline("input", "the input")
    comparison = "input / target / one step / error"
    sweep_name = "sweep"
    draws_sweep = False
    vae: ImageVae

    def __init__(self, config: Config, options: EditingOptions) -> None:
        """Raises UserError where options do not fit the rest of the configuration."""
        self._config, self._options, self._edit = config, options, options.edit
        edit = self._edit
        self.spec = ModelSpec(
            in_channels=edit.in_channels,
            inputs=edit.inputs,
            widening="repeat-zero" if edit.has_mask else "repeat",
            keeps_cross_attention=True,
            published=_PUBLISHED[edit.in_channels],
        )
        self.objective: Objective = RectifiedFlow()
        bound = BOUND[edit.name]
        self.metrics: tuple[Metric, ...] = tuple(dict.fromkeys((bound, RANKING[edit.name])))
        self.charts: tuple[Chart, ...] = charts_of(edit)
        augment = config.data.augment
        self.augmentation: Augmentation | None = (
            EditingAugmentation(augment, config.seed, edit) if augment.is_on else None
        )
        self._prompt = EmptyPrompt(config, options.empty_prompt)
        # What is made of the target has a name of its own: latents are kept by part and content.
        given = has_inputs(config.data.path, edit)
        self._given = "input" if given else f"{options.model.painting} painting"
        parts = {"data": ("target",), self._given: ("input" if given else "target",), "valid": ("target",)}
        self.latent_parts: Mapping[str, tuple[str, ...]] = parts | ({"mask": ("mask",)} if edit.has_mask else {})

    @classmethod
    def options(cls) -> type[EditingOptions]:
        return EditingOptions

    @property
    def criterion(self) -> Criterion:
        return Criterion(((R2, self._config.overfit.min_r2), (BOUND[self._edit.name], self._options.max_rmse)))

    def load_vae(self, device: torch.device) -> None:
        self.vae = load_vae(self._config.model.vae_source, seed=self._config.seed).to(device)
        self._prompt.downloads = True  # as for the VAE; what opens a model that is trained brings its own

    # Data

    def open_data(self, image_size: int | None = None) -> SampleSet[EditingSample]:
        data = self._config.data
        found = open_dataset(data.path, data.image_size if image_size is None else image_size, self._options)
        if isinstance(found, WithValidation) and found.shared:
            self.charts = of_training_data(self.charts)
        return found

    def find_data(self) -> None:
        resolve_path(self._config.data.path, self._edit)
        if self._options.validation_path is not None:
            resolve_path(Path(self._options.validation_path).expanduser(), self._edit)

    def examine_data(self, path: str, image_size: int | None, *, renew: bool = False) -> EditingExamination:
        return EditingExamination(path, image_size, self._options, renew=renew)

    @staticmethod
    def collate(samples: Sequence[EditingSample]) -> EditingBatch:
        return collate(samples)

    def own_input(self, given: Mapping[str, Any]) -> tuple[EditingBatch, str] | None:
        asked = [name for name, value in given.items() if value is not None and name != "sample"]
        if asked:
            raise UserError(
                f"--{asked[0].replace('_', '-')}: an editing model is given samples of a data set here; for pictures "
                "of your own: shadowlab generate RUN --image FILE"
            )
        return None

    def random_batch(self, count: int) -> EditingBatch:
        size = self._config.data.image_size
        names = [f"sample {i}" for i in range(count)]
        mask = torch.zeros(count, 1, size, size)
        mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
        return EditingBatch(
            ids=names,
            objects=names,
            input=torch.rand(count, 3, size, size),
            target=torch.rand(count, 3, size, size),
            mask=mask if self._edit.has_mask else torch.ones_like(mask),
            valid=torch.ones_like(mask),
            gains=torch.full((count, 3), float("nan")),
        )

    # Latents and conditions

    @torch.no_grad()
    def encode(self, batch: EditingBatch, positions: Tensor | None = None) -> EncodedBatch:
        """Latents (B, 4, h, w) of the targets; conditions as `assemble`. positions: (B,) int64."""
        positions = torch.arange(len(batch)) if positions is None else positions
        batch = batch.to(self.vae.device)
        latents = {part: self.encode_part(part, batch) for part in self.latent_parts}
        return self.assemble(list(batch.ids), positions, latents, {})

    @torch.no_grad()
    def encode_part(self, part: str, batch: EditingBatch) -> Tensor:
        """Target or input (B, 4, h, w); mask (B, 1, h, w) in [0, 1]; valid (B, 1, h, w) in {0, 1}: all of it is."""
        if part == "mask":
            return mask_to_latent(batch.mask)
        if part == "valid":
            return (mask_to_latent(batch.valid) > 1 - 1e-6).float()
        return self.vae.encode((batch.target if part == "data" else batch.input) * 2.0 - 1.0)

    @staticmethod
    def numbers(entry: Entry) -> dict[str, Tensor]:
        """None: nothing but pictures, (B, ...) of latents, is known of a sample; gains are not told."""
        return {}

    def assemble(
        self, ids: list[str], positions: Tensor, latents: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
    ) -> EncodedBatch:
        """Input latents and mask concatenated, (B, 4 or 5, h, w); the empty prompt for each sample, (B, N, D)."""
        device = self.vae.device
        told = self._prompt.of(self.vae).to(device).expand(len(ids), -1, -1)
        given = [latents[part].to(device) for part in (self._given, "mask") if part in latents]
        conditions = Conditions(concatenated=torch.cat(given, dim=1), tokens=told)
        return EncodedBatch(ids, positions, latents["data"].to(device), conditions, latents["valid"].to(device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> pictures (B, 3, H, W) float32 in [0, 1], as the model paints them."""
        return ((self.vae.decode(latents) + 1.0) / 2.0).clamp(0.0, 1.0)

    def generator(self, draw: Callable[[EncodedBatch, int, int], Tensor]) -> EditingGenerator:
        """Edits of a user's own pictures. draw: gives (B, 3, H, W) in [0, 1]."""
        return EditingGenerator(self, self._options, self._config.data.image_size, draw)

    @property
    def exported(self) -> Exported | None:
        keep = self._options.keep_input
        return EditingExported(self.vae, self._edit, keep_input=keep, prompt=self._prompt.of(self.vae))

    # Judgement

    def target(self, batch: EditingBatch) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]."""
        return batch.target

    def judge(self, prediction: Tensor, batch: EditingBatch) -> dict[str, Tensor]:
        """`judged` of what the model paints, (B, 3, H, W) in [0, 1]: each metric (B,)."""
        keep = self._options.keep_input
        return judged(self._edit.name, prediction, batch.to(prediction.device), keep_input=keep)

    def baselines(self, batch: EditingBatch) -> dict[str, Tensor]:
        """The input itself, (B, 3, H, W)."""
        return {"input": batch.input}

    @cached_property
    def evaluation(self) -> Evaluation[EditingBatch]:
        options = self._options
        notes = []
        if options.validation_path is not None and options.validate_on_training_data:
            notes.append(
                "task_options.validate_on_training_data: this model may have been validated on its training data; "
                "figures on them measure memory"
            )
        found: Any = EditingEvaluation(self._edit, keep_input=options.keep_input, notes=tuple(notes))
        return found

    # Probes

    def probes(self, batch: EditingBatch, encoded: EncodedBatch, reach: Reach) -> list[Probe]:
        """The input: a paler one, or its opposite; and the mask."""
        return probes.probes(self._edit, encoded, reach)

    def ablations(self, batch: EditingBatch, encode: Callable[[EditingBatch], EncodedBatch]) -> list[Ablation]:
        """The input and the mask."""
        return probes.ablations(self._edit, batch, encode)

    def sweep(
        self, batch: EditingBatch, encoded: EncodedBatch, steps: int
    ) -> dict[str, list[tuple[float, EncodedBatch]]]:
        """Nothing: there is no number that the model is told."""
        return {}

    # Figures

    def input_figure(self, batch: EditingBatch) -> Tensor:
        """The first sample's input, (3, H, W) in [0, 1]."""
        return input_picture(batch, self._edit)

    def comparison_figure(self, batch: EditingBatch, prediction: Tensor, max_rows: int) -> Tensor:
        """As `comparison_grid`; prediction (B, 3, H, W)."""
        keep = self._options.keep_input
        return comparison_grid(batch, prediction, self._edit, keep_input=keep, max_rows=max_rows)

    def sweep_figure(self, batch: EditingBatch, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
        """Never asked for (3, H', W'): there is no sweep."""
        raise ValueError("an editing model has nothing to sweep")

    # Checks

    @cached_property
    def reference(self) -> EditingReference:
        return EditingReference(self._options, self._config.seed)

    def check_batch(self, batch: EditingBatch, path: PathTable) -> list[Check]:
        return checks.batch(batch, path, self._options)

    def check_encoding(self, batch: EditingBatch, encoded: EncodedBatch, path: PathTable) -> list[Check]:
        return checks.encoding(self, batch, encoded, path, config=self._config, options=self._options)
