"""Shadow maps and object images as the small VAE is trained on them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from shadowlab.data import SampleSet
from shadowlab.models import ImageVae
from shadowlab.stages.train_vae.loss import loss_terms
from shadowlab.stages.train_vae.pictures import training_pictures
from shadowlab.stages.train_vae.quality import VaeQuality, measure_vae
from shadowlab.tasks.shadow import Sample, open_dataset


class ShadowStock:
    """A `Stock`: three quarters of a batch are shadow maps, repeated to RGB, the rest object images."""

    def samples(self, path: str | Path, image_size: int) -> SampleSet[Sample]:
        """As `Stock`."""
        return open_dataset(path, image_size)

    def start(self, model: Any) -> None:
        """As they were drawn."""

    def batch(
        self, read: Callable[[int], Sample], indices: Sequence[int], step: int, batch_size: int, side: int, seed: int
    ) -> dict[str, Tensor]:
        """shadows (M, 1, side, side) in [0, 1] and objects (N, 3, side, side) in [-1, 1]."""
        shadows, objects = training_pictures(read, indices, step, batch_size, side, seed)
        return {"shadows": shadows, "objects": objects}

    def loss_terms(self, model: Any, batch: Mapping[str, Tensor], step: int, seed: int) -> dict[str, Tensor]:
        """As `loss.loss_terms`, each (). batch: as `batch` gives it, (B, C, H, W)."""
        return loss_terms(model, batch["shadows"], batch["objects"], step, seed)

    def pictures(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """(3, H, W) in [-1, 1] each."""
        return sample.shadow.expand(3, -1, -1) * 2.0 - 1.0, sample.object_image

    def measure(self, vae: ImageVae, data: SampleSet[Sample], indices: Sequence[int], seed: int) -> VaeQuality:
        return measure_vae(vae, data, indices, seed=seed)
