"""The memory that live tensors hold while code runs on fake tensors, by what they are."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from diagnostics import replaced
from shadowlab.distributed import local

WEIGHTS, GRADIENTS, MOMENTS, EMA, VAE = "weights", "gradients", "AdamW moments", "EMA", "VAE weights"
HALF_WEIGHTS, ACTIVATIONS = "half copies of weights", "activations, temporaries"
COMMUNICATION = "gathered weights, reduce buffers"
ITEMS = (WEIGHTS, GRADIENTS, MOMENTS, EMA, VAE, HALF_WEIGHTS, ACTIVATIONS, COMMUNICATION)

Workspace = Callable[[Any, Any, Any], int]

_BLOCK_BYTES = 512  # CUDA's allocator rounds every request up to a multiple
_ON_HOST = ""


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operator makes inside, until nothing refers to it.

    What the host reads of a tensor is true, 2.0 (finite, and within the range of every light) or 0 (an index): fake
    tensors have no values, and a step must go on.

    Args:
        workspace: bytes that an operator holds above its results while it runs, of (operator, arguments, result).

    Attributes:
        peaks: moment -> label -> bytes, when their sum was highest in that moment.
        peaks_but_gradients: the same of all else, for gradients that are there at all times.
    """

    def __init__(self, fakes: FakeTensorMode, workspace: Workspace | None = None) -> None:
        super().__init__()
        self._fakes, self._workspace = fakes, workspace
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, dict[str, int]] = {}
        self.peaks_but_gradients: dict[str, dict[str, int]] = {}
        self._moment = ""
        self._held: dict[int, tuple[str, int]] = {}  # identity of a storage -> its label and bytes
        self._total = 0
        self._highest: Counter[str] = Counter()
        self._highest_but_gradients: Counter[str] = Counter()

    def enter(self, moment: str) -> None:
        """From now on peaks belong to `moment`."""
        self._moment = moment
        self._see()

    def label(self, name: str, tensors: Any) -> None:
        """Count what these tensors hold as `name`."""
        for tensor in _tensors(tensors):
            storage = local(tensor).untyped_storage()
            self._hold(storage, name, _rounded(storage))

    def add(self, name: str, size: int) -> None:
        """Count that many bytes more, or fewer, as `name`: memory that no operator made."""
        self.live[name] += size
        self._total += size
        self._see()

    def on_host(self, tensors: Any) -> None:
        """Leave out what these hold: it lies in the host's memory."""
        for tensor in _tensors(tensors):
            self._hold(tensor.untyped_storage(), _ON_HOST, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # first it becomes operators on this process's shard
        if func is torch.ops.aten._local_scalar_dense.default:
            return _read(args[0])
        result = func(*args, **(kwargs or {}))
        label = self._label_of(func, args)
        for tensor in _tensors(result):
            if getattr(tensor, "fake_mode", None) is not self._fakes:
                continue  # DTensor works out shapes on fake tensors of its own
            storage = tensor.untyped_storage()
            if id(storage) not in self._held:
                self._hold(storage, label, _rounded(storage))
        held = 0 if self._workspace is None else self._workspace(func, args, result)
        if held:
            self.add(ACTIVATIONS, held)
            self.add(ACTIVATIONS, -held)
        return result

    def resized(self, storage: torch.UntypedStorage) -> None:
        """FSDP empties and fills gathered weights by resizing their storage, which is no operator."""
        self._hold(storage, COMMUNICATION, _rounded(storage))

    def _label_of(self, func: Any, args: Any) -> str:
        if func is torch.ops.aten.empty.memory_format:  # other operators make their own outputs; FSDP asks for buffers
            return COMMUNICATION
        if func is torch.ops.aten._to_copy.default:
            source, _ = self._held.get(id(args[0].untyped_storage()), (ACTIVATIONS, 0))
            return HALF_WEIGHTS if source in (WEIGHTS, COMMUNICATION) else ACTIVATIONS
        return ACTIVATIONS

    def _hold(self, storage: torch.UntypedStorage, label: str, size: int) -> None:
        key = id(storage)
        if key in self._held:
            self._take_off(key)
        else:
            weakref.finalize(storage, self._forget, key).atexit = False
        self._held[key] = (label, size)
        self.live[label] += size
        self._total += size
        self._see()

    def _forget(self, key: int) -> None:
        self._take_off(key)
        del self._held[key]

    def _take_off(self, key: int) -> None:
        label, size = self._held[key]
        self.live[label] -= size
        self._total -= size

    def _see(self) -> None:
        moment, but_gradients = self._moment, self._total - self.live[GRADIENTS]
        if self._total > self._highest[moment]:
            self._highest[moment], self.peaks[moment] = self._total, dict(self.live)
        if but_gradients > self._highest_but_gradients[moment]:
            self._highest_but_gradients[moment], self.peaks_but_gradients[moment] = but_gradients, dict(self.live)


@contextmanager
def fake_tensors(workspace: Workspace | None = None) -> Iterator[LiveBytes]:
    """Inside, tensors have shape, dtype and device but no memory; what they would hold is counted.

    workspace: as LiveBytes has it.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    live = LiveBytes(fakes, workspace)

    def resize(original: Callable) -> Callable:
        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            original(storage, size)
            live.resized(storage)

        return resize_

    def listed(original: Callable) -> Callable:
        return lambda tensor: [_read(tensor)] * len(tensor) if tensor.ndim == 1 else original(tensor)

    def same_everywhere(original: Callable) -> Callable:
        def gather(found: list[Any], mine: Any, *_: Any) -> None:
            found[:] = [mine] * len(found)

        return gather

    def converted(original: Callable) -> Callable:
        def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
            for one in module.modules():
                for name, parameter in one._parameters.items():
                    if parameter is not None:
                        one._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
                for name, buffer in one._buffers.items():
                    one._buffers[name] = None if buffer is None else function(buffer)
            return module

        return _apply

    with ExitStack() as stack:
        stack.enter_context(fakes)
        stack.enter_context(replaced(torch.UntypedStorage, "resize_", resize))
        stack.enter_context(replaced(FakeTensor, "tolist", listed))  # as it is, one operator an element
        stack.enter_context(replaced(nn.Module, "_apply", converted))  # as it is, it cannot exchange fake parameters
        stack.enter_context(replaced(torch.distributed, "all_gather_object", same_everywhere))
        stack.enter_context(live)
        yield live


def _read(tensor: Tensor) -> bool | int | float:
    return True if tensor.dtype is torch.bool else 2.0 if tensor.is_floating_point() else 0


def _tensors(tree: Any) -> Iterator[Tensor]:
    leaves = (tree,) if isinstance(tree, Tensor) else tree_iter(tree)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))


def _rounded(storage: torch.UntypedStorage) -> int:
    return -(-storage.nbytes() // _BLOCK_BYTES) * _BLOCK_BYTES
