"""What a task gives check-forward to compare the harness with: known samples, and its own specification of a step.

Legend: B batch, C channels, H W pixels, h w latents (H/8).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from shadowlab.quantities import Quantity

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RawVae:
    """An autoencoder without what the harness puts around it: nothing is scaled, shifted, checked or cut."""

    encode: Callable[[Tensor], Tensor]
    """(B, 3, H, W) in [-1, 1] -> the posterior's mode (B, 4, h, w)."""
    decode: Callable[[Tensor], Tensor]
    """(B, 4, h, w) -> (B, 3, H, W)."""
    scaling_factor: float
    shift_factor: float


class ObjectiveReference(Protocol):
    """As `Objective`, written once more."""

    places: Mapping[str, str]
    """`noised`, `timesteps`, `loss`, `generate` -> where the harness has it: `shadowlab/models/flow.py, interpolate`"""

    def noised(self, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """noise, data: (B, 4, h, w). t: (B,) in [0, 1]. Returns (B, 4, h, w)."""

    def timesteps(self, t: Tensor) -> Tensor:
        """t: (B,) in [0, 1]. Returns (B,), in the model's units."""

    def loss(self, prediction: Tensor, noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """prediction, noise, data: (B, 4, h, w). t: (B,). Returns (B,), of each sample."""

    def generate(self, predict: Predict, noise: Tensor, steps: int) -> Tensor:
        """noise: (B, 4, h, w). Returns (B, 4, h, w), latents."""


class TaskReference(Protocol):
    """Shares no code with the task. A layout is one of the kinds of data set that the task reads."""

    image_size: int
    """Pixels, of the golden samples as the model sees them."""
    options: Mapping[str, Any]
    """`task_options` for a run on them: nothing is drawn that is not compared."""
    layouts: tuple[str, ...]
    """The first is trained on."""
    objective: ObjectiveReference
    judging_place: str
    """Where the metrics are computed."""

    def write(self, layout: str, folder: Path) -> str:
        """Write the golden samples into an empty folder; what data.path must be to read them."""

    def ids(self, layout: str) -> list[str]:
        """In the order of the data set."""

    def objects(self, layout: str) -> list[str]:
        """Of each sample, what a split must not separate."""

    def read(self, layout: str, name: str, sample: Any) -> Iterable[Quantity]:
        """What the harness read of the sample `name`, next to what was written."""

    def collated(self, layout: str, names: Sequence[str], batch: Any) -> Iterable[Quantity]:
        """What the harness stacked of these samples."""

    def encoded(self, layout: str, names: Sequence[str], vae: RawVae) -> dict[str, Tensor]:
        """Named as in `EncodedBatch.tensors`, each (B, ...)."""

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """Name for people -> a part of such tensors, (B, ...), and where it is computed; first those others need."""

    def decoded(self, latents: Tensor, vae: RawVae) -> Tensor:
        """(B, 4, h, w) -> (B, C, H, W) in [0, 1]."""

    def judged(self, layout: str, names: Sequence[str], prediction: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) in [0, 1] -> metric -> (B,)."""

    def functions(self, task: Any, vae: RawVae) -> Iterable[Quantity]:
        """The task's functions of numbers alone, each next to its specification. `task` has its VAE."""

    def metrics(self, task: Any) -> Iterable[Quantity]:
        """Metrics of pictures whose figures are known in closed form; the truth, the floor, and which is better."""
