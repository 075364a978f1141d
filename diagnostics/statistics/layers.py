"""Activation and gradient statistics of every leaf module, in the order of execution."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from diagnostics.modules import eager_modules, eagerly, in_backward, leaf_modules
from diagnostics.patching import replaced
from diagnostics.statistics.tensor import Samples, TensorStatistics
from diagnostics.tensors import tensors_in


class _Output(NamedTuple):
    """The tensor that was measured last, and the layers that returned it: Dropout with p=0 hands its input through."""

    tensor: Tensor
    version: int | None
    sample: int | None  # its number; None where the tensor holds nothing
    repeated: bool  # by activation checkpointing
    names: list[str]


class _Log(NamedTuple):
    """Which sample is whose, in the order of execution: two flat lists, for Python objects cost collections."""

    names: list[str]
    samples: list[int | None]

    def add(self, name: str, sample: int | None) -> None:
        self.names.append(name)
        self.samples.append(sample)


class LayerStatistics:
    """Measures each leaf module's output and the gradient of the loss by that output.

    Inside `with statistics.recording():` nothing is read on the host: each call leaves a sample of its output on its
    device (16 KiB of a large float32 tensor, 64 KiB at most), and `collect` computes and fetches all statistics at
    once; see `TensorStatistics` for what of them is exact. Outside `recording` the model carries no hook, so it is
    copied, pickled and compiled as if nobody watched; inside, `torch.save` leaves the hooks out of a model that is
    saved whole.
    Nothing is changed: outputs and gradients pass through as they are.

    Gradients are taken by hooks on the output tensors, not by full backward hooks, which break in-place operators
    (pytorch#61519). Under activation checkpointing the repeated forward is not counted twice. Several calls of a
    module (gradient accumulation, shared layers) and several tensors of an output are measured as one tensor.
    Measured are floating and complex outputs (see `tensors.dense` for sparse, complex and sharded ones).
    Compiled modules run eagerly inside `recording`: torch.compile does not notice hooks that come after it. What
    they compute then differs by rounding from a compiled step, here alone does watching change a number. Optimizers
    keep their compiled step.

        statistics = LayerStatistics(model)
        with statistics.recording():
            loss = model(batch).mean()
            loss.backward()
        for name, layer in statistics.collect().items(): ...
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._attached = True
        self._is_hidden = False  # from dispatch modes
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._recording: object | None = None  # identity of the current recording: hooks of earlier ones stay silent
        self._last: _Output | None = None
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerStatistics":
        """The same object: a model that is copied while it records takes its hooks along."""
        return self

    def attach(self) -> None:
        """Let the next `recording` measure (the state after construction)."""
        self._attached = True

    def detach(self) -> None:
        """Take every hook off, at once; a `recording` measures nothing until `attach`."""
        self._attached = False
        self._stop()

    @contextmanager
    def recording(self, enabled: bool = True, *, is_hidden: bool = False) -> Iterator[None]:
        """Measure what runs inside; with `enabled=False` nothing is measured. Forgets what was not collected.

        Args:
            is_hidden: dispatch modes that are active, such as that of `diagnostics.tracing`, do not see the measuring.

        Raises:
            RuntimeError: inside another recording of this object.
        """
        if self._recording is not None:
            raise RuntimeError("LayerStatistics is recording already; leave the first `with` block before the second")
        self._forget()
        if not (enabled and self._attached):
            yield
            return
        self._recording = recording = object()
        self._is_hidden = is_hidden
        try:
            for name, module in leaf_modules(self._model).items():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                self._handles.append(module.register_forward_hook(partial(self._after_forward, name, recording)))
            compiled = eagerly() if is_hidden else eager_modules()  # a mode sees nothing of what is compiled
            with compiled, replaced(torch, "save", self._without_hooks):
                yield
        finally:
            self._stop()

    def collect(self) -> dict[str, dict[str, TensorStatistics]]:
        """Name -> {"activation": ..., "gradient": ...} in the order of execution, and forget. One transfer to the host.

        A layer whose output received no gradient has no "gradient" entry, nor has one that returned a view of its
        input which was then changed in place (autograd drops that view). One that did not run, or returned no
        floating tensor, is absent. Gradients are those of the loss that was differentiated: scaled, if it was.
        """
        names: dict[tuple[str, str], list[int | None]] = {}
        seen = set(self._activations.names)
        for kind, log in (("activation", self._activations), ("gradient", self._gradients)):
            for name, number in zip(log.names, log.samples, strict=True):
                if name in seen:
                    names.setdefault((name, kind), []).append(number)
        result: dict[str, dict[str, TensorStatistics]] = {name: {} for name, kind in names if kind == "activation"}
        for (name, kind), statistics in zip(names, self._samples.summarize(list(names.values())), strict=True):
            result[name][kind] = statistics
        self._forget()
        return result

    def _forget(self) -> None:
        self._samples, self._activations, self._gradients = Samples(), _Log([], []), _Log([], [])

    def _stop(self) -> None:
        self._recording = self._last = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _without_hooks(self, original: Callable[..., None]) -> Callable[..., None]:
        """`torch.save`, which would write the hooks into a model's file."""

        @wraps(original)
        def save(*args: Any, **kwargs: Any) -> None:
            taken = [(handle.id, hooks) for handle in self._handles if (hooks := handle.hooks_dict_ref()) is not None]
            kept = [(hooks, number, hooks.pop(number)) for number, hooks in taken if number in hooks]
            try:
                original(*args, **kwargs)
            finally:
                for hooks, number, hook in kept:
                    hooks[number] = hook

        return save

    def _after_forward(self, name: str, recording: object, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._recording is not recording:
            return
        for tensor in tensors_in(output):
            last = self._last
            if last is not None and tensor is last.tensor and last.version == _version(tensor) is not None:
                last.names.append(name)
            else:
                last = self._last = self._measured(tensor, name, recording)
            if not last.repeated:
                self._activations.add(name, last.sample)

    def _measured(self, tensor: Tensor, name: str, recording: object) -> _Output:
        repeated = in_backward() or tensor.is_meta
        number = None if repeated else self._sampled(tensor)
        seen = _Output(tensor, _version(tensor), number, repeated, [name])
        if tensor.requires_grad:
            handle = tensor.register_hook(_GradientHook(self, seen.names, recording))
            if tensor.is_leaf:  # a parameter handed through: it outlives the graph, and so would the hook
                self._handles.append(handle)
        return seen

    def _after_backward(self, names: list[str], recording: object, gradient: Tensor) -> None:
        if self._recording is recording:
            number = self._sampled(gradient)
            for name in names:
                self._gradients.add(name, number)

    def _sampled(self, tensor: Tensor) -> int | None:
        """Of a tensor of any shape, the number of its sample."""
        with _disable_current_modes() if self._is_hidden else nullcontext():
            return self._samples.add(tensor)


@dataclass(slots=True, eq=False)
class _GradientHook:
    """One object where a `partial` of a method is three."""

    statistics: LayerStatistics
    names: list[str]
    recording: object

    def __call__(self, gradient: Tensor) -> None:
        self.statistics._after_backward(self.names, self.recording, gradient)


def _version(tensor: Tensor) -> int | None:
    """Changes with every operation in place; None where nobody counts them."""
    return None if tensor.is_inference() else tensor._version
