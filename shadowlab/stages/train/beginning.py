"""What must hold before the first step, and of every batch: who trains, in which order, and that a checkpoint gives
back what it took. Each failure names the place in the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diagnostics import NonFiniteError
from shadowlab.data import (
    SampleSet,
    Split,
    described_split,
    micro_batch_positions,
    order_fault,
    sample_indices,
    split_fault,
)
from shadowlab.distributed import Processes
from shadowlab.errors import StageFailedError
from shadowlab.evaluation import FixedGrid
from shadowlab.session import Session
from shadowlab.settings import TrainConfig
from shadowlab.stages.train.round_trip import round_trip_fault

_PROVEN: list[tuple[Any, ...]] = []  # what this process has proven: a second training in it has the same code


@dataclass(frozen=True)
class Stream:
    """The samples that a run must see, by their place in the stream."""

    dataset: SampleSet[Any]
    split: Split
    seed: int

    def check(self, batches: Sequence[Any], settings: TrainConfig, processes: Processes, position: int) -> None:
        """Raise StageFailedError where this process's micro-batches of the step that begins at `position` hold other
        samples than stand there in the stream."""
        batch, accumulation = settings.batch_size, settings.gradient_accumulation_steps
        places = micro_batch_positions(position, batch, accumulation, processes.rank, processes.count)
        for one, positions in zip(batches, places, strict=True):
            self.check_ids(one.ids, positions)

    def check_ids(self, ids: Sequence[str], positions: Sequence[int]) -> None:
        """The same of one micro-batch, by the ids of its samples and their consecutive positions."""
        indices = sample_indices(positions[0], len(positions), len(self.split.train), self.seed)
        wanted = [self.dataset.ids[self.split.train[i]] for i in indices]
        if list(ids) != wanted:
            row = next((i for i, (own, other) in enumerate(zip(ids, wanted, strict=False)) if own != other), 0)
            raise StageFailedError(
                f"train failed: position {positions[row]} of the stream is {wanted[row]}, and the step was given "
                f"{ids[row] if row < len(ids) else 'nothing'} there; look at shadowlab/data/loader.py, endless_batches "
                "and at how the data set reads and stacks samples"
            )

    def described(self) -> dict[str, dict[str, object]]:
        """Who is who, for the header."""
        return described_split(self.split, self.dataset.ids, self.dataset.object_ids)


def prove_data(session: Session, stream: Stream, grid: FixedGrid, position: int) -> None:
    """Raise StageFailedError where training and validation mix, or the next two epochs are not two shuffles of all."""
    settings, split = session.config.train, stream.split
    numbers = {name: number for number, name in enumerate(stream.dataset.ids)}
    judged = [numbers[name] for name in grid.batch.ids]
    fault = split_fault(split, stream.dataset.object_ids, judged)
    fault = fault or order_fault(
        len(split.train),
        session.config.seed,
        position,
        settings.batch_size,
        settings.gradient_accumulation_steps,
        session.processes.count,
    )
    if fault is not None:
        raise StageFailedError(f"train failed: {fault}")


def prove_checkpoints(session: Session, grid: FixedGrid) -> None:
    """Raise StageFailedError where a checkpoint does not give back what it took. One process is enough."""
    config = session.config
    shape = (config.task, config.precision, config.train.ema_decay, config.optimizer, grid.encoded.data.shape[1:])
    with session.processes.together():
        if session.processes.is_main and shape not in _PROVEN and _is_proven(session, grid):
            _PROVEN.append(shape)


def _is_proven(session: Session, grid: FixedGrid) -> bool:
    """False where it cannot be told; raises as `prove_checkpoints`."""
    try:
        fault = round_trip_fault(session, grid.encoded.select(torch.arange(min(2, len(grid.batch)))))
    except NonFiniteError:  # the run's own first step will say where it is born
        session.reporter.warn("the round trip of a checkpoint was not proven: a step of its stand-in is not finite")
        return False
    if fault is not None:
        raise StageFailedError(f"train failed: {fault}")
    return True
