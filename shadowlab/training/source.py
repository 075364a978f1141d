"""Where a run's encoded batches come from: pictures that pass the VAE in the step, or latents from the cache."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from shadowlab.data import Readable, SampleSet
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.latents import LatentDataset, collate_latents, encoded_latents
from shadowlab.settings import Config
from shadowlab.tasks import Augmentation, Task


@dataclass(frozen=True)
class BatchSource:
    """`dataset` and `collate` are for the loader and its workers, `encode` for the step."""

    dataset: Readable
    collate: Callable[[Sequence[Any]], Any]
    encode: Callable[[Any, Tensor | None], EncodedBatch]
    """(micro-batch, positions (B,) int64) -> EncodedBatch on the VAE's device."""
    notices: Sequence[str] = ()
    """Remarks that the caller should print."""
    augmented: Callable[[int, int], Any] | None = None
    """(number of a sample, its position in the stream) -> the sample as the loader gives it to a step; None: as
    `dataset` has it."""

    def read(self, indices: Iterable[int], positions: Tensor | None = None) -> EncodedBatch:
        """These samples as one batch, without a loader and as they are. positions: (B,) int64, by default 0 .. B-1."""
        return self.encode(self.collate([self.dataset[i] for i in indices]), positions)


@dataclass(frozen=True)
class _Augmented:
    """Pictures as they are at a position of the stream."""

    dataset: Readable
    augmentation: Augmentation

    def __call__(self, i: int, position: int) -> Any:
        return self.augmentation.sample(self.dataset[i], position)


def open_source(
    config: Config, dataset: SampleSet[Any], task: Task[Any], indices: Iterable[int], *, augmented: bool = False
) -> BatchSource:
    """Latents where `data.latents` names a cache, pictures of `dataset` where it does not.

    Both give the same samples in the same order with the same noise. Latents are those of batches of one, which may
    differ from those of larger ones in the last bits.

    Args:
        indices: samples that will be read.
        augmented: whether `data.augment` is for these samples; only `train` changes any.

    Raises:
        UserError: as LatentDataset.
    """
    augmentation = task.augmentation if augmented else None
    if config.data.latents is None:
        changed = None if augmentation is None else _Augmented(dataset, augmentation)
        return BatchSource(dataset, task.collate, task.encode, augmented=changed)
    latents = LatentDataset(config, dataset, task, indices, augmentation)
    return BatchSource(
        latents,
        collate_latents,
        partial(encoded_latents, task),
        latents.notices,
        None if augmentation is None else latents.augmented,
    )
