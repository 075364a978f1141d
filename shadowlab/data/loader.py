"""Batches by position: which samples a process reads in a step is arithmetic, not state."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
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


class _Stream(Dataset[Any]):
    """Samples by (index among `indices`, position in the stream); an error is a value as in `_Subset`."""

    def __init__(self, read: Callable[[int, int], Any], indices: Sequence[int]) -> None:
        self._read, self._indices = read, list(indices)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        index, position = place
        try:
            return self._read(self._indices[index], position)
        except UserError as error:
            return error


@dataclass(frozen=True)
class _AsTheyAre:
    dataset: Readable

    def __call__(self, i: int, position: int) -> Any:
        return self.dataset[i]


def _collate_unless_bad(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or collate(items)


def _leave_interrupts_to_the_loop(_: int) -> None:
    """Signals of the terminal and of launchers reach the workers, too; the step that is finished first needs them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Those of a loader that an error still refers to: Python would end them by SIGTERM, which they leave to the loop,
    and wait forever."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()


class _EndlessSampler(Sampler[list[tuple[int, int]]]):
    """(index, position) of each sample of a micro-batch."""

    def __init__(self, length: int, seed: int, first: int, batch_size: int, accumulation: int, rank: int, count: int):
        self._length, self._seed = length, seed
        self._arguments = (first, batch_size, accumulation, rank, count)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, batch_size, accumulation, rank, count = self._arguments
        while True:
            for positions in micro_batch_positions(first, batch_size, accumulation, rank, count):
                indices = sample_indices(positions[0], batch_size, self._length, self._seed)
                yield list(zip(indices, positions, strict=True))
            first += batch_size * accumulation * count


def planned_indices(
    length: int, seed: int, first: int, batch_size: int, accumulation: int, rank: int, count: int
) -> Iterator[list[tuple[int, int]]]:
    """What `endless_batches` of the same arguments reads: (index, position) of a micro-batch's samples, forever."""
    return iter(_EndlessSampler(length, seed, first, batch_size, accumulation, rank, count))


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
    read: Callable[[int, int], Any] | None = None,
) -> Generator[Any]:
    """This process's micro-batches, from `first_position` on, forever. Workers do not change the order; `close` ends
    them.

    Args:
        collate: makes a micro-batch from its samples.
        read: (number of a sample, its position in the stream) -> the sample as it is there; workers get copies of it.
            None: samples are the same wherever they come.

    Raises:
        UserError: a sample cannot be read; names it.
    """
    sampler = _EndlessSampler(len(indices), seed, first_position, batch_size, accumulation, rank, num_processes)
    stream = _Stream(read or _AsTheyAre(dataset), indices)
    loader = DataLoader(
        stream,
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
