"""Which inputs of the batch the loss is computed from, and whether a target is computed in vain: followed through the
operators of a few steps."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.model_calls import CALLS
from diagnostics.contracts.modes import running_parts
from diagnostics.contracts.scene import Scene, Step
from diagnostics.modules import eager_modules, in_backward, unwrapped
from diagnostics.patching import own_frames, variables_of
from diagnostics.tensors import named_tensors

_STEPS = 3  # in which an input is lost, or a target
_IS_SEEN = re.compile(r"image|picture|pixel|frame|video|condition|control|depth|light")
_IS_TARGET = re.compile(r"(^|_)(targets?|velocity|velocities)(_|$)")
_NEW = ("empty", "zeros", "ones", "full", "rand", "randn", "zero_", "fill_")
_ZERO = ("zeros", "zeros_like", "new_zeros", "zero_")
_MOVES = (
    *("alias", "detach", "view", "_unsafe_view", "reshape", "clone", "_to_copy", "slice", "select", "narrow", "expand"),
    *("unsqueeze", "squeeze", "transpose", "t", "permute", "as_strided", "split", "unbind", "lift_fresh"),
)
_Names = frozenset[str]
_NOTHING: _Names = frozenset()


class Influence(Family):
    """In the first step, and in the next ones where an input was lost in it."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._lost: dict[str, int] | None = None  # input -> steps in a row; None before the first
        self._flow: _Flow | None = None

    def around(self, step: Step) -> AbstractContextManager[Any]:
        """Compiled code runs eagerly in a step that is due, and in one that is asked again: else it is not seen."""
        is_first = self._lost is None and step.is_due
        return self._following(step) if is_first or self._lost else nullcontext()

    @contextmanager
    def _following(self, step: Step) -> Iterator[None]:
        self._flow = flow = _Flow({n: t for n, t in step.inputs().items() if not t.is_complex()})
        heard = partial(_note_call, flow)
        roots = [part for model in self.scene.models for part in running_parts(unwrapped(model))]
        with ExitStack() as stack:
            for root in roots:
                CALLS.listen(root, heard)
                stack.callback(CALLS.forget, root, heard)
            stack.enter_context(eager_modules())
            stack.enter_context(flow)
            yield

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        if self._flow is not None:
            self._flow.has_roots = True
            for root in roots:
                self._flow.reached |= self._flow.names_of(root)
            frame = next(own_frames(), None)
            for name, value in ({} if frame is None else variables_of(frame)).items():
                if isinstance(value, Tensor) and value.numel() > 1 and _IS_TARGET.search(name.lower()):
                    self._flow.targets[name] = _memory(value)

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if self._flow is not None:
            self._flow.is_paused = not has_closure  # a closure computes losses

    def after_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if self._flow is not None:
            self._flow.is_paused = False

    def end(self, step: Step) -> None:
        flow, self._flow = self._flow, None
        for name, low, high in () if flow is None else flow.bad_targets:
            evidence = (
                f"targets of a binary cross-entropy from {low:g} to {high:g}, which are probabilities: the loss has"
            )
            self.broken("input-out-of-range", step, f"{evidence} no lowest value", subject=name)
        if flow is None or not flow.has_roots or not flow.reached:
            return
        whole = {name for name, tensor in step.inputs().items() if not tensor.is_floating_point()}
        pictures = {n for n, t in step.inputs().items() if t.is_floating_point() and _IS_SEEN.search(n.lower())}
        ignored = pictures - flow.taken - flow.passed
        counted = {n for n in whole & flow.used if step.inputs()[n].dim() < 2}
        missing = (flow.passed | ignored) - flow.reached - flow.escaped - counted
        unused = {name for name, key in flow.targets.items() if key in flow.computed} - missing
        before = self._lost or {}
        lost = sorted(missing | unused)
        self._lost = {name: before.get(name, 0) + 1 for name in lost if not before or name in before}
        for name, count in self._lost.items():
            if count >= _STEPS:
                evidence = f"the model is given it, and the loss is not computed from it, {count} steps in a row"
                if name in unused:
                    evidence = f"the step computes it, and nothing is computed from it, {count} steps in a row"
                if name in ignored:
                    evidence = f"no operator takes it, and the model is not given it, {count} steps in a row"
                severity = "warning" if name in whole | unused | ignored | flow.zeroed else "alarm"
                self.broken("input-without-influence", step, evidence, subject=name, severity=severity)
        if any(count >= _STEPS for count in self._lost.values()):
            self._lost = {}

    def forget(self) -> None:
        self._flow = None


def _note_call(flow: "_Flow", root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.is_grad_enabled():
        for _, tensor in named_tensors("", [*args, *kwargs.values()]):
            flow.passed |= flow.names_of(tensor)


class _Flow(TorchDispatchMode):
    """Notes from which inputs each memory was computed. Runs every operator as it is."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.passed: set[str] = set()
        """Inputs that a model was given."""
        self.reached: set[str] = set()
        """Inputs that something differentiated was computed from."""
        self.escaped: set[str] = set()
        """Inputs that were read on the host, and may decide anything."""
        self.used: set[str] = set()
        """Inputs that an operator took which does more than move them."""
        self.targets: dict[str, int] = {}
        """Variables of the step that are named as targets -> their memory."""
        self.bad_targets: list[tuple[str, float, float]] = []
        """Inputs, with their range, that are targets of a binary cross-entropy and no probabilities."""
        self.computed: set[int] = set()
        """Memories that an operator has written and none has read."""
        self.zeroed: set[str] = set()
        """Inputs that met a factor of 0, as a weight that grows begins."""
        self.taken: set[str] = set()
        """Inputs that any operator took for more than their shape."""
        self.has_roots = False
        self.is_paused = False
        """The optimizer steps: many operators, and nothing of theirs is a loss."""
        self._names: dict[int, _Names] = {}
        self._zeros: set[int] = set()
        for name, tensor in inputs.items():
            key = _memory(tensor)
            self._names[key] = self._names.get(key, _NOTHING) | {name}

    def names_of(self, tensor: Tensor) -> _Names:
        return self._names.get(_memory(tensor), _NOTHING)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.is_paused and not in_backward():
            self._note(func.overloadpacket.__name__, (*args, *(kwargs or {}).values()), result)
        return result

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        keys = {_memory(tensor) for tensor in _any_tensors(arguments)}
        found = [self._names[key] for key in keys if key in self._names]
        names = _NOTHING.union(*found)
        if name.startswith("binary_cross_entropy") and len(arguments) > 1 and isinstance(arguments[1], Tensor):
            self._note_targets(arguments[1])
        results = {_memory(tensor) for tensor in _any_tensors((result,))}
        self.computed -= keys - results
        if name not in _MOVES:
            self.computed |= results
        if not isinstance(result, (Tensor, list, tuple)):  # a number on the host
            self.escaped |= names
            return
        if found and name not in _MOVES:
            self.used.update(*found)
        is_new = name.startswith("new_") or name.endswith("_like") or name in _NEW
        self.taken |= _NOTHING if is_new else names
        is_zero = name in _ZERO or (name in ("mul", "mul_") and any(map(self._is_zero, arguments)))
        self.zeroed |= names if is_zero else _NOTHING
        for tensor in _any_tensors((result,)):
            key = _memory(tensor)
            is_whole = key not in keys or _is_whole(tensor)
            if (is_new or is_zero) and is_whole:
                self._names.pop(key, None)
            elif key in keys and not is_whole:
                self._names[key] = self._names.get(key, _NOTHING) | names
            elif names:
                self._names[key] = names
            else:
                self._names.pop(key, None)
            self._zeros.discard(key)
            if is_zero and is_whole:
                self._zeros.add(key)

    def _note_targets(self, targets: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(targets.detach().float())) if targets.numel() else (0.0, 1.0)
        if low < 0 or high > 1:
            self.bad_targets.append((min(self.names_of(targets), default="target"), low, high))

    def _is_zero(self, value: Any) -> bool:
        """Whether a factor is known to be 0, without a read on an accelerator."""
        if isinstance(value, (int, float)):
            return value == 0
        if not isinstance(value, Tensor):
            return False
        if value.is_cpu and value.dim() == 0 and type(value) is Tensor and not value.is_complex():
            return bool(torch.ops.aten._local_scalar_dense(value) == 0)
        return _memory(value) in self._zeros


def _any_tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _any_tensors(value)


def _memory(tensor: Tensor) -> int:
    """Of the tensor's storage: views share it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse
        return id(tensor)


def _is_whole(tensor: Tensor) -> bool:
    """Whether it is all of its storage."""
    try:
        return tensor.numel() * tensor.itemsize >= tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return True
