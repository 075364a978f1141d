"""What a task is: everything that differs between training for shadows, for albedo or for anything else.

Step, loop, stages, checkpoints, plan, views and diagnostics see a `Task` and `EncodedBatch`es. What is concatenated,
what an embedding means, what the target is, what passing means and what is drawn is said by the task.

Legend: B batch, C channels, H W pixels, h w latents (H/8).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from shadowlab.charts import R2, Chart, Metric
from shadowlab.checks import Check, PathTable
from shadowlab.data import Entry, Examination, SampleSet
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.models import ImageVae, ModelSpec, Objective
from shadowlab.settings import Section
from shadowlab.tasks.evaluation import Evaluation
from shadowlab.tasks.exported import Exported
from shadowlab.tasks.reference import TaskReference

__all__ = [
    "R2",
    "Ablation",
    "Augmentation",
    "Baseline",
    "Criterion",
    "Guidance",
    "Metric",
    "Probe",
    "Reach",
    "Task",
    "TaskBatch",
]

Reach = Literal["near", "far"]


class TaskBatch(Protocol):
    """Samples of a task, stacked; their pictures are the task's own."""

    @property
    def ids(self) -> list[str]:
        """B sample ids."""

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> Self:
        """Those samples. rows: int64 indices (n,)."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on `device`."""


B = TypeVar("B", bound=TaskBatch)


@dataclass(frozen=True)
class Criterion:
    """What `overfit` asks of the memorised samples."""

    bounds: tuple[tuple[Metric, float], ...]

    def met_by(self, numbers: Mapping[str, float]) -> bool:
        """Whether every metric, found by its name, keeps its bound; NaN keeps none."""
        return all(
            numbers[metric.name] >= bound if metric.higher_is_better else numbers[metric.name] <= bound
            for metric, bound in self.bounds
        )

    def to_json(self) -> dict[str, float]:
        return {metric.name: bound for metric, bound in self.bounds}

    def covered_by(self, recorded: Mapping[str, Any]) -> bool:
        """Whether a criterion that an earlier run noted, as `to_json` gives it, asked for as much as this one."""
        return all(isinstance(recorded.get(metric.name), int | float) for metric, _ in self.bounds) and all(
            recorded[metric.name] >= bound if metric.higher_is_better else recorded[metric.name] <= bound
            for metric, bound in self.bounds
        )

    def text(self) -> str:
        """`R^2 >= 0.95 and soft IoU >= 0.8`."""
        return " and ".join(
            f"{metric.text} {'>=' if metric.higher_is_better else '<='} {bound:g}" for metric, bound in self.bounds
        )

    def missed_text(self, numbers: Mapping[str, float]) -> str:
        """`R^2 is 0.272 (needs 0.95) and soft IoU 0.503 (needs 0.8)`."""
        found = [f"{m.text} {numbers[m.name]:{m.form}} (needs {bound:g})" for m, bound in self.bounds]
        first = self.bounds[0][0].text
        return " and ".join(found).replace(first, f"{first} is", 1)


@dataclass(frozen=True, eq=False)
class Guidance:
    """Classifier-free guidance (Ho and Salimans, 2022): without + scale (with - without)."""

    scale: float
    without: EncodedBatch
    """The same samples without the condition."""


@dataclass(frozen=True)
class Baseline:
    """A prediction without a model, that the model must beat."""

    name: str
    """Its key in `Task.baselines`; the prefix of its metrics in records."""
    text: str
    """For people."""


@dataclass(frozen=True, eq=False)
class Probe:
    """The same samples with one condition changed."""

    name: str
    """The condition."""
    reference: EncodedBatch
    """As the batch has it, however it was encoded."""
    encoded: EncodedBatch
    """With another value of this condition."""
    change: str
    """For people: `from 30 to 11.25`."""
    part: slice | None = None
    """Elements along the last dimension of what it changes that stand for this condition alone; None: those that
    differ."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """The same samples, encoded with one input of the task exchanged among them, or taken out."""

    name: str
    """The input, for people and files: `object`."""
    exchanged: EncodedBatch | None
    """Each sample has another one's; None where the input is the same in all of them, so that it cannot be judged."""
    removed: EncodedBatch | None
    """Nothing, or the mean, is in its place; None where that is no other input."""
    belongs_to: Literal["object", "sample"] = "sample"
    """What it must differ between: of `object` one that is the same in all objects is a fault."""


class Augmentation(Protocol):
    """How training samples are changed: a function of the run's seed and of a sample's position in the stream alone.
    Copies go to the loader's processes."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of what may become of a sample's pictures, where that is one of a few other pictures: their latents
        can be kept. What has no end of variants, `AugmentConfig` refuses together with a cache."""

    def sample(self, sample: Any, position: int) -> Any:
        """A sample of the data set as it is at this position."""

    def variant(self, position: int) -> str:
        """Which of `variants` the pictures are at this position; empty: as they are."""

    def as_variant(self, sample: Any, variant: str) -> Any:
        """The sample with its pictures as one of `variants`, to be encoded."""

    def numbers(self, numbers: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
        """What `Task.numbers` gave, tensors (...) without a batch dimension, as it is at this position: what `sample`
        makes of the same."""


class Task(Protocol[B]):
    """One task. `encode`, `decode` and what calls them need `load_vae` first, all else needs no weights."""

    name: str
    spec: ModelSpec
    objective: Objective
    metrics: tuple[Metric, ...]
    """Of `judge`, those that are printed first."""
    baseline: Baseline | None
    """The one that is printed next to the model."""
    latent_parts: Mapping[str, tuple[str, ...]]
    """Part of an encoded batch (`data`, `concatenated`) -> roles of the pictures that decide it; a part that is encoded
    once can be kept by their content."""
    charts: tuple[Chart, ...]
    """What the views draw of its evaluations, in this order; the header of a run's records carries them."""
    comparison: str
    """What `comparison_figure` shows of a sample, from left to right, for people: `object / target / error`."""
    sweep_name: str
    """Of `sweep`, for people and files: `light-sweep`."""
    augmentation: Augmentation | None
    """What `data.augment` makes of training samples; None where it is off, or where the task has none."""
    vae: ImageVae

    @classmethod
    def options(cls) -> type[Section]:
        """What `task_options` of the configuration may hold."""

    @property
    def criterion(self) -> Criterion: ...

    @property
    def draws_sweep(self) -> bool:
        """Whether validation draws `sweep`."""

    def load_vae(self, device: torch.device) -> None:
        """Load the configured VAE onto `device`."""

    # Data

    def open_data(self, image_size: int | None = None) -> SampleSet[Any]:
        """The configured data set. image_size: pixels, another than the configured one.

        Raises:
            UserError: there is none, or it is faulty.
        """

    def find_data(self) -> None:
        """Raise UserError where nothing that can be read lies at data.path. Cheap: samples are not looked at."""

    def examine_data(self, path: str, image_size: int | None, *, renew: bool = False) -> Examination:
        """The data set at `path`, opened to be examined for all that is wrong with it.

        Args:
            image_size: pixels; where given, samples must also survive being brought to this size.
            renew: read all names and metadata, even where an index of them is kept.

        Raises:
            UserError: there is none.
        """

    @staticmethod
    def collate(samples: Sequence[Any]) -> B:
        """Stack samples of the data set. Handed to the loader's processes, hence without the task and its VAE."""

    def own_input(self, given: Mapping[str, Any]) -> tuple[B, str] | None:
        """A user's own input, made from the command line's options (None where not given), and a remark for the user.
        None where none of them is given.

        Raises:
            UserError: options are missing, wrong, or not for this task.
        """

    def random_batch(self, count: int) -> B:
        """Samples of the configured shapes that show nothing, for measuring memory."""

    # Latents and conditions

    def encode(self, batch: B, positions: Tensor | None = None) -> EncodedBatch:
        """Pictures to latents (B, 4, h, w) on the VAE's device. positions: (B,) int64, by default 0 .. B-1."""

    def encode_part(self, part: str, batch: B) -> Tensor:
        """One of `latent_parts`, (B, C, h, w) float32, of a batch on the VAE's device."""

    @staticmethod
    def numbers(entry: Entry) -> dict[str, Tensor]:
        """What an encoded sample needs next to its latents, from its metadata: name -> tensor (...), without a batch
        dimension. Handed to the loader's processes, as `collate`."""

    def assemble(
        self, ids: list[str], positions: Tensor, latents: Mapping[str, Tensor], numbers: Mapping[str, Tensor]
    ) -> EncodedBatch:
        """The encoded batch of latents, each part (B, C, h, w), and of stacked `numbers`, (B, ...).

        positions: (B,) int64.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> predicted pictures (B, C, H, W) float32 in [0, 1]."""

    def generator(self, draw: Callable[..., Tensor]) -> Any:
        """What makes pictures of a user's own input, with a method `generate` whose arguments are the task's.

        draw: (B encoded samples, steps, seed) -> (B, C, H, W) float32 in [0, 1] on the CPU; their seeds follow one
        another from `seed` on. Of the samples' latents only the conditions and the shape are looked at. A fourth
        argument is a `Guidance`, or None.
        """

    @property
    def exported(self) -> Exported | None:
        """What an exported model of it carries; None where it cannot be exported. Needs the VAE."""

    # Judgement

    def target(self, batch: B) -> Tensor:
        """The right pictures, (B, C, H, W) float32 in [0, 1]."""

    def judge(self, prediction: Tensor, batch: B) -> dict[str, Tensor]:
        """prediction (B, C, H, W) in [0, 1] -> metric -> (B,)."""

    def baselines(self, batch: B) -> dict[str, Tensor]:
        """Name -> prediction (B, C, H, W) in [0, 1]."""

    @property
    def evaluation(self) -> Evaluation[B]:
        """How `shadowlab evaluate` judges."""

    # Probes: what the model must answer to

    def probes(self, batch: B, encoded: EncodedBatch, reach: Reach) -> list[Probe]:
        """One changed condition each. reach: `near` stays well inside the range, `far` goes to its other end."""

    def ablations(self, batch: B, encode: Callable[[B], EncodedBatch]) -> list[Ablation]:
        """Of every input, what `overfit` must find to be used.

        A task may have no such method: then nothing is asked.

        Args:
            batch: two samples or more.
            encode: `self.encode`, a few samples at a time. What is changed are pictures and numbers of the batch, so
                that a fault of the encoding is in what is judged.
        """

    def sweep(self, batch: B, encoded: EncodedBatch, steps: int) -> dict[str, list[tuple[float, EncodedBatch]]]:
        """Condition -> `steps` (value, one sample with it) over its range; empty where there is nothing to sweep."""

    # Figures

    def input_figure(self, batch: B) -> Tensor:
        """What the model is given of the first sample, (3, H', W') in [0, 1]."""

    def comparison_figure(self, batch: B, prediction: Tensor, max_rows: int) -> Tensor:
        """At most `max_rows` samples next to their predictions (B, C, H, W), (3, H', W') in [0, 1]."""

    def sweep_figure(self, batch: B, sweep: Mapping[str, Sequence[tuple[float, Tensor]]]) -> Tensor:
        """(3, H', W') in [0, 1]. sweep: condition -> (value, prediction (C, H, W) in [0, 1])."""

    # Checks of check-forward; each adds its tensors to `path`

    @property
    def reference(self) -> TaskReference | None:
        """What the harness is compared with on samples that are known; None: nothing, so nothing proves a step."""

    def check_batch(self, batch: B, path: PathTable) -> list[Check]:
        """What can be said of a batch before it is encoded."""

    def check_encoding(self, batch: B, encoded: EncodedBatch, path: PathTable) -> list[Check]:
        """Latents, conditions, and that nothing of the target is in what the model is given."""
