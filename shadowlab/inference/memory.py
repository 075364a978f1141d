"""How many samples fit into memory together: one is drawn and measured, and the rest follow in batches.

Legend: B samples.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_USED = 0.5  # of the memory that is free: kernels have work space of their own, and others want some
MOST_TOGETHER = 64


def drawn_in_batches(draw: Callable[[int, int], Tensor], count: int, device: torch.device) -> Tensor:
    """All samples, (B, ...), in batches as large as memory allows, each at most `MOST_TOGETHER`.

    Where a GPU refuses a batch in spite of the measurement, it is halved.

    Args:
        draw: (first, end) -> those samples, (end - first, ...), on the CPU.
        count: B, at least 1.

    Raises:
        torch.OutOfMemoryError: a single sample does not fit.
    """
    if count == 1:
        return draw(0, 1)
    with measured(device) as peak:
        found = [draw(0, 1)]
    together = batch_size(peak.num_bytes, free_bytes(device))
    done = 1
    while done < count:
        end = min(done + together, count)
        try:
            found.append(draw(done, end))
        except torch.OutOfMemoryError:
            if together == 1:
                raise
            together = max(1, together // 2)
            torch.cuda.empty_cache()
        else:
            done = end
    return torch.cat(found)


def batch_size(sample_bytes: int, free: int) -> int:
    """Samples that fit together, 1 .. `MOST_TOGETHER`, of which one takes so many bytes at its peak."""
    return max(1, min(MOST_TOGETHER, int(_USED * free) // max(sample_bytes, 1)))


def free_bytes(device: torch.device) -> int:
    """Memory that can be had."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


class Peak(TorchDispatchMode):
    """Counts the storages that operators make inside, until nothing refers to them.

    Attributes:
        num_bytes: the most that were there at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes, self._live = 0, 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(one.untyped_storage()) for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._held and id(storage) not in given:
                    self._hold(storage)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._held.add(key)
        self._live += size
        self.num_bytes = max(self.num_bytes, self._live)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._held.discard(key)
        self._live -= size


@contextmanager
def measured(device: torch.device) -> Iterator[Peak]:
    """Inside, what operators allocate is counted: by CUDA itself where it computes, else by watching operators."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.num_bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with peak:
            yield peak
