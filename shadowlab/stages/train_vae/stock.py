"""What a task's pictures are to the small VAE: how they are drawn, what its loss asks for, and how it is judged.

Legend: H W pixels; pictures are (3, H, W) in [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from shadowlab.data import SampleSet
from shadowlab.errors import UserError
from shadowlab.models import ImageVae

S = TypeVar("S")
Quality = Any
"""A dataclass of numbers, as report.json has them."""


class Stock(Protocol[S]):
    """Of one task."""

    def samples(self, path: str | Path, image_size: int) -> SampleSet[S]:
        """Raises UserError where there is no such data set."""

    def start(self, model: Any) -> None:
        """Set weights of the fresh autoencoder."""

    def batch(
        self, read: Callable[[int], S], indices: Sequence[int], step: int, batch_size: int, side: int, seed: int
    ) -> dict[str, Tensor]:
        """Name -> augmented pictures (B, C, side, side) of one step; a function of (seed, step)."""

    def loss_terms(self, model: Any, batch: Mapping[str, Tensor], step: int, seed: int) -> dict[str, Tensor]:
        """Scalar `loss` and its terms by name, each (). batch: as `batch` gives it, (B, C, H, W)."""

    def pictures(self, sample: S) -> tuple[Tensor, Tensor]:
        """What a model of the task learns to make, and what it is given, (3, H, W) each."""

    def measure(self, vae: ImageVae, data: SampleSet[S], indices: Sequence[int], seed: int) -> Quality:
        """How well these samples, at least one, come back."""


def stock_of(task: str) -> Stock[Any]:
    """Raises UserError where no small VAE is made for a task of this name."""
    match task:
        case "shadow":
            from shadowlab.stages.train_vae.shadows import ShadowStock

            return ShadowStock()
        case "albedo":
            from shadowlab.stages.train_vae.colours import ColourStock

            return ColourStock()
    raise UserError(f"--task {task}: the small VAE is trained for shadow or albedo")
