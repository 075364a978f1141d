"""Batches by position: which samples a process reads in a step is arithmetic, not state."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler

from shadowlab.data.order import sample_indices
from shadowlab.errors import UserError


class Readable(Protocol):
    """Samples by number: pictures or their latents. Workers get copies of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any:
        """Sample i. Raises UserError naming the sample if it cannot be read."""


def micro_batch_positions(
    first_position: int, batch_size: int, accumulation: int, rank: int, num_processes: int
) -> list[list[int]]:
    """Positions in the sample stream of each micro-batch of one process in one step.

    A step takes `batch_size x accumulation x num_processes` consecutive positions. Micro-batch m of rank r takes
    the block m * num_processes + r, so 1 x 4, 2 x 2 and 4 x 1 processes x accumulation read the same samples.
    """
    starts = [first_position + (m * num_processes + rank) * batch_size for m in range(accumulation)]
    return [list(range(start, start + batch_size)) for start in starts]


class _Subset(Dataset[Any]):
    def __init__(self, dataset: Readable, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        """A bad sample's error is a value here: raised in a worker, it would come back wrapped in a traceback."""
        try:
            return self._dataset[self._indices[index]]
        except UserError as error:
            return error


def _collate_unless_bad(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or collate(items)


def _leave_interrupts_to_the_loop(_: int) -> None:
    """Ctrl-C and a launcher's SIGTERM reach the workers, too; the step that is finished first needs their samples."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _EndlessSampler(Sampler[list[int]]):
    def __init__(self, length: int, seed: int, first: int, batch_size: int, accumulation: int, rank: int, count: int):
        self._length, self._seed = length, seed
        self._arguments = (first, batch_size, accumulation, rank, count)

    def __iter__(self) -> Iterator[list[int]]:
        first, batch_size, accumulation, rank, count = self._arguments
        while True:
            for positions in micro_batch_positions(first, batch_size, accumulation, rank, count):
                yield sample_indices(positions[0], batch_size, self._length, self._seed)
            first += batch_size * accumulation * count


def endless_batches(
    dataset: Readable,
    indices: Sequence[int],
    *,
    collate: Callable[[Sequence[Any]], Any],
    seed: int,
    first_position: int,
    batch_size: int,
    accumulation: int,
    rank: int,
    num_processes: int,
    num_workers: int,
) -> Iterator[Any]:
    """This process's micro-batches, from `first_position` on, forever. Workers do not change the order.

    Args:
        collate: makes a micro-batch from its samples.

    Raises:
        UserError: a sample cannot be read; names it.
    """
    sampler = _EndlessSampler(len(indices), seed, first_position, batch_size, accumulation, rank, num_processes)
    subset = _Subset(dataset, indices)
    loader = DataLoader(
        subset,
        batch_sampler=sampler,
        collate_fn=partial(_collate_unless_bad, collate),
        num_workers=num_workers,
        worker_init_fn=_leave_interrupts_to_the_loop,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def in_order(dataset: Readable, indices: Sequence[int], *, num_workers: int) -> Iterator[Any]:
    """The samples of these numbers, one by one. Workers read ahead; they do not change the order.

    Raises:
        UserError: a sample cannot be read; names it.
    """
    loader = DataLoader(
        _Subset(dataset, indices),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=_leave_interrupts_to_the_loop,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _as_it_is(item: Any) -> Any:
    return item
