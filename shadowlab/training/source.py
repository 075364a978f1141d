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
from shadowlab.tasks import Task


@dataclass(frozen=True)
class BatchSource:
    """`dataset` and `collate` are for the loader and its workers, `encode` for the step."""

    dataset: Readable
    collate: Callable[[Sequence[Any]], Any]
    encode: Callable[[Any, Tensor | None], EncodedBatch]
    """(micro-batch, positions (B,) int64) -> EncodedBatch on the VAE's device."""
    notices: Sequence[str] = ()
    """Remarks that the caller should print."""

    def read(self, indices: Iterable[int], positions: Tensor | None = None) -> EncodedBatch:
        """These samples as one batch, without a loader. positions: (B,) int64, by default 0 .. B-1."""
        return self.encode(self.collate([self.dataset[i] for i in indices]), positions)


def open_source(config: Config, dataset: SampleSet[Any], task: Task[Any], indices: Iterable[int]) -> BatchSource:
    """Latents where `data.latents` names a cache, pictures of `dataset` where it does not.

    Both give the same samples in the same order with the same noise. Latents are those of batches of one, which may
    differ from those of larger ones in the last bits.

    Args:
        indices: samples that will be read.

    Raises:
        UserError: as LatentDataset.
    """
    if config.data.latents is None:
        return BatchSource(dataset, task.collate, task.encode)
    latents = LatentDataset(config, dataset, task, indices)
    return BatchSource(latents, collate_latents, partial(encoded_latents, task), latents.notices)
