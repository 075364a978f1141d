"""Who is judged: a model in so many steps, a baseline, the truth.

Legend: n samples, S seeds, C channels, H W pixels, h w latents (H/8).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from shadowlab.errors import StageFailedError
from shadowlab.inference import LoadedModel, sample
from shadowlab.seeding import normal
from shadowlab.tasks import Ensemble, Task, TaskBatch

_MOST_PIXELS = 2**21  # that pass the model together: 128 pictures of 128, 2 of 1024


class Method(Protocol):
    """What makes pictures of samples."""

    @property
    def name(self) -> str:
        """For people, in tables and files."""

    @property
    def num_seeds(self) -> int:
        """0 where nothing is drawn."""

    @property
    def obeys(self) -> bool:
        """Whether its pictures follow the conditions, so that they can be changed."""

    def pictures(self, batch: TaskBatch) -> Iterator[Tensor]:
        """One sample's pictures, of all seeds in their order, or one: (s, C, H, W) float32 in [0, 1] on the CPU, as
        many at a time as memory allows."""

    def first(self, batch: TaskBatch) -> Tensor:
        """(n, C, H, W): of each sample the first seed's picture; samples of one id have the same noise."""


@dataclass(frozen=True)
class Fixed:
    """Pictures without a draw."""

    name: str
    predict: Callable[[Any], Tensor]
    obeys: bool = True
    num_seeds: int = 0

    def pictures(self, batch: TaskBatch) -> Iterator[Tensor]:
        yield self.first(batch)

    def first(self, batch: TaskBatch) -> Tensor:
        return self.predict(batch).float().clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Generated:
    """A model's pictures in `steps` steps, of seeds 0 to `num_seeds` - 1.

    The noise of a sample follows from its id and the seed, so that it is the same for every model, every number of
    steps, and whichever process draws it.
    """

    model: LoadedModel
    task: Task[Any]
    """The model's, with the data that is judged on."""
    image_size: int
    steps: int
    num_seeds: int
    obeys: bool = True

    @property
    def name(self) -> str:
        return f"model, {self.steps} step{'' if self.steps == 1 else 's'}"

    def pictures(self, batch: TaskBatch) -> Iterator[Tensor]:
        encoded = self.task.encode(batch)
        for seeds in torch.arange(self.num_seeds).split(self._at_once):
            shape = encoded.data.shape[1:]
            noise = torch.stack([normal(shape, seed, "evaluate", batch.ids[0]) for seed in seeds.tolist()])
            rows = torch.zeros(len(seeds), dtype=torch.int64)
            pictures = self._checked(sample(self.model, encoded.select(rows), noise, self.steps), batch.ids[0])
            yield self._finished(pictures, batch.select(rows))

    def first(self, batch: TaskBatch) -> Tensor:
        found = []
        for rows in torch.arange(len(batch)).split(self._at_once):
            part = batch.select(rows)
            encoded = self.task.encode(part)
            noise = torch.stack([normal(encoded.data.shape[1:], 0, "evaluate", name) for name in part.ids])
            pictures = self._checked(sample(self.model, encoded, noise, self.steps), part.ids[0])
            found.append(self._finished(pictures, part))
        return torch.cat(found)

    @property
    def _at_once(self) -> int:
        return max(1, _MOST_PIXELS // self.image_size**2)

    def _finished(self, pictures: Tensor, batch: TaskBatch) -> Tensor:
        finish = getattr(self.task, "finished", None)
        return pictures if finish is None else finish(pictures, batch)

    def _checked(self, pictures: Tensor, name: str) -> Tensor:
        if not bool(pictures.isfinite().all()):
            raise StageFailedError(
                f"{self.name}: what the model makes of sample {name} is not finite; look at the run's health, or judge "
                "an earlier checkpoint"
            )
        return pictures


@dataclass(eq=False)
class Remembered:
    """A model's pictures, of which those of the last sample are kept, so that `Together` need not draw them again."""

    drawn: Generated
    obeys: bool = True
    _last: tuple[TaskBatch, list[Tensor]] | None = None

    @property
    def name(self) -> str:
        return self.drawn.name

    @property
    def num_seeds(self) -> int:
        return self.drawn.num_seeds

    def pictures(self, batch: TaskBatch) -> Iterator[Tensor]:
        found = []
        for part in self.drawn.pictures(batch):
            found.append(part)
            yield part
        self._last = batch, found

    def first(self, batch: TaskBatch) -> Tensor:
        return self.drawn.first(batch)

    def of_all_seeds(self, batch: TaskBatch) -> Tensor:
        """(S, C, H, W) of one sample."""
        if self._last is None or self._last[0] is not batch:
            return torch.cat(list(self.pictures(batch)))
        return torch.cat(self._last[1])


@dataclass(frozen=True, eq=False)
class Together:
    """One picture made of a model's pictures of all seeds, as the task puts them together."""

    singles: Remembered
    ensemble: Ensemble
    obeys: bool = False
    num_seeds: int = 0

    @property
    def name(self) -> str:
        return f"{self.singles.name}, {self.ensemble.text} of {self.singles.num_seeds}"

    def pictures(self, batch: TaskBatch) -> Iterator[Tensor]:
        yield self.ensemble.reduce(self.singles.of_all_seeds(batch))[None]

    def first(self, batch: TaskBatch) -> Tensor:
        samples = [batch.select(torch.tensor([row])) for row in range(len(batch))]
        return torch.cat([picture for sample in samples for picture in self.pictures(sample)])
