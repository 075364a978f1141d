"""What an operand would have been in float64: the recent past of each tensor, kept as far as it is cheap.

A zero denominator that is not zero in float64 has underflowed; a result that is finite in float64 has overflowed.
Recomputed are the operators that led to a tensor, back to values that are still in memory.
"""

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diagnostics.tensors import is_inexact
from diagnostics.tracing.nested import leaves, mapped
from diagnostics.tracing.provenance import Memory

_HISTORY = 6  # writes remembered of one storage
_CLONE_LIMIT = 64 * 2**20  # bytes that a call may overwrite and still be copied before
_KEPT_BYTES = 512 * 2**20  # inputs of recent calls that are kept alive
_DEPTH = 12
_ELEMENTS = 2**27
# Positive wherever their argument is finite; float64 rounds them to zero, too, only later.
_NEVER_ZERO = {"exp", "exp2", "_softmax", "_safe_softmax", "sigmoid", "softplus", "exp_", "sigmoid_"}
_SUMS = {"sum", "count_nonzero", "nansum"}
_COUNTS = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "bincount", "histc"}
# Between a count and its use as a denominator.
_PASS_ON = {"_to_copy", "clone", "mul", "mul_", "clamp", "clamp_min", "copy_", "div", "squeeze", "_unsafe_view"}
# Random or uninitialised: a second call gives other values.
_NOT_REPEATABLE = {"native_dropout", "bernoulli", "bernoulli_", "rand", "randn", "rand_like", "randn_like", "normal_"}
_NOT_REPEATABLE |= {"uniform_", "random_", "exponential_", "multinomial", "normal", "randint", "randperm"}
_NOT_REPEATABLE |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}


class LostError(Exception):
    """A value is neither in memory nor can it be recomputed."""


@dataclass
class _Reference:
    """A tensor argument of a past call, as it was then."""

    tensor: "weakref.ref[Tensor]"
    storage: Any
    version: int
    geometry: tuple[Any, ...]
    before: Tensor | None  # copy of what the call overwrote


@dataclass
class _Producer:
    func: Any
    name: str
    args: Any  # with _Reference in place of tensors
    kwargs: Any
    slot: int
    geometry: tuple[Any, ...]
    is_foreach: bool


@dataclass
class Before:
    """A call that is about to run."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    copies: dict[int, Tensor | None] = field(default_factory=dict)
    references: Any = None

    def value(self, tensor: Tensor) -> Tensor | None:
        """The tensor as it was before the call; None where that is lost."""
        return self.copies.get(id(tensor), tensor)

    def values(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with what was overwritten as it was before, None where that is lost."""
        return mapped(lambda a: self.value(a) if isinstance(a, Tensor) else a, (self.args, self.kwargs))

    @property
    def num_bytes(self) -> int:
        tensors = [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
        return sum(t.numel() * t.dtype.itemsize for t in tensors)

    def frozen(self, limit: int) -> "Before | None":
        """The call with copies of its tensors, safe from later writes; None where they exceed `limit` bytes."""
        args, kwargs = self.values()
        if Before(self.func, args, kwargs).num_bytes > limit:
            return None
        args, kwargs = mapped(lambda a: a.detach().clone() if isinstance(a, Tensor) else a, (args, kwargs))
        return Before(self.func, args, kwargs)


def _reference_of(call: Before, tensor: Tensor) -> "_Reference | None":
    flat, references = leaves((call.args, call.kwargs)), leaves(call.references)
    for value, reference in zip(flat, references, strict=True):
        if value is tensor and isinstance(reference, _Reference):
            return reference
    return None


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


class Recorder:
    """Remembers how tensors were made."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kept: deque[tuple[int, list[Tensor]]] = deque()
        self._num_bytes = 0

    def before(self, func: Any, args: Any, kwargs: Any, mutated: list[Tensor]) -> Before:
        call = Before(func, args, kwargs)
        if mutated:
            small = sum(t.numel() * t.dtype.itemsize for t in mutated) <= _CLONE_LIMIT
            for tensor in mutated:
                call.copies[id(tensor)] = tensor.detach().clone() if small else None
        call.references = mapped(lambda a: self._refer(a, call) if isinstance(a, Tensor) else a, (args, kwargs))
        return call

    def _refer(self, tensor: Tensor, call: Before) -> Any:
        if tensor.layout is not torch.strided:
            return tensor
        record = self._memory.storage(tensor)
        copied = call.copies.get(id(tensor))
        return _Reference(weakref.ref(tensor), record, record.version, _geometry(tensor), copied)

    def after(self, call: Before, written: list[Tensor]) -> None:
        """Note who wrote `written`. Their storages' versions count this write already."""
        namespace, name = call.func._schema.name.split("::")
        if namespace not in ("aten", "prims"):
            return  # a collective must not be run again, and what others do is unknown
        args, kwargs = call.references
        for slot, tensor in enumerate(written):
            if not is_inexact(tensor) and tensor.dtype is torch.bool:
                continue
            record = self._memory.storage(tensor)
            is_foreach = name.startswith("_foreach_")
            record.producers[record.version] = _Producer(
                call.func, name, args, kwargs, slot, _geometry(tensor), is_foreach
            )
            record.producers.pop(record.version - _HISTORY, None)
        self._keep([leaf for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)])

    def _keep(self, tensors: list[Tensor]) -> None:
        size = sum(t.numel() * t.dtype.itemsize for t in tensors if t.layout is torch.strided)
        self._kept.append((size, tensors))
        self._num_bytes += size
        while self._num_bytes > _KEPT_BYTES or len(self._kept) > 256:
            self._num_bytes -= self._kept.popleft()[0]

    # Recomputation

    def exact_argument(self, call: Before, tensor: Tensor) -> Tensor:
        """An argument of a call in float64, as it would be had float64 been used for the operators before.

        Raises:
            LostError: it was overwritten, and what made it is forgotten.
        """
        reference = _reference_of(call, tensor)
        return widened(tensor) if reference is None else self._value(reference, _DEPTH)

    def num_summed(self, call: Before, tensor: Tensor) -> Tensor | None:
        """How many non-zero terms went into each element of an argument that is a sum or count; None if it is none."""
        reference = _reference_of(call, tensor)
        for _ in range(_DEPTH):
            producer = None if reference is None else reference.storage.producers.get(reference.version)
            if producer is None:
                return None
            inputs = [a for a in leaves((producer.args, producer.kwargs)) if isinstance(a, _Reference)]
            if not inputs:
                return None
            if producer.name in _COUNTS:
                return (tensor != 0).double()
            if producer.name in _SUMS:
                try:
                    terms = (self._value(inputs[0], 0) != 0).double()
                    return run_in_float64(producer.func, (terms, *producer.args[1:]), {})[0].reshape(tensor.shape)
                except (LostError, RuntimeError, TypeError):
                    return None
            if producer.name not in _PASS_ON:
                return None
            reference = inputs[0]
        return None

    def _exact_at(self, record: Any, version: int, geometry: Any, actual: Tensor | None, depth: int) -> Tensor:
        producer = record.producers.get(version)
        numel = torch.Size(geometry[0]).numel()
        if producer is None or depth == 0 or producer.name in _NOT_REPEATABLE or numel > _ELEMENTS:
            if actual is None:
                raise LostError
            return widened(actual)
        try:
            made = self._run(producer, depth - 1)
        except (LostError, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            if actual is None:
                raise LostError from None
            return widened(actual)
        if producer.geometry == geometry:
            return made
        return _as_view(made, producer.geometry, geometry, actual)

    def _run(self, producer: _Producer, depth: int) -> Tensor:
        args, kwargs = producer.args, producer.kwargs
        if producer.is_foreach:
            args, kwargs = element(args, kwargs, producer.slot)

        def resolve(value: Any) -> Any:
            return self._value(value, depth) if isinstance(value, _Reference) else value

        args, kwargs = mapped(resolve, (args, kwargs))
        slot = 0 if producer.is_foreach else producer.slot
        return run_in_float64(producer.func, args, kwargs)[slot]

    def _value(self, reference: _Reference, depth: int) -> Tensor:
        tensor = reference.tensor()
        intact = tensor is not None and reference.storage.version == reference.version
        actual = tensor if intact else reference.before
        return self._exact_at(reference.storage, reference.version, reference.geometry, actual, depth)


def element(args: Any, kwargs: Any, slot: int) -> tuple[Any, Any]:
    """A foreach call's arguments for one place of its lists."""
    lists = [value for value in [*args, *kwargs.values()] if isinstance(value, (list, tuple))]
    length = len(lists[0]) if lists else 0

    def pick(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and len(value) == length and slot < length:
            return [value[slot]]
        return value

    return tuple(pick(value) for value in args), {key: pick(value) for key, value in kwargs.items()}


def widened(tensor: Tensor) -> Tensor:
    """A copy in float64 (complex128); integers and booleans as they are."""
    tensor = tensor.detach()
    if tensor.is_complex():
        return tensor.to(torch.complex128, copy=True)
    return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.clone()


def run_in_float64(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Run an operator on copies of its arguments in float64; its outputs, and after them what it wrote in place."""
    wide = {torch.float16, torch.bfloat16, torch.float32}

    def widen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return widened(value)
        return torch.float64 if isinstance(value, torch.dtype) and value in wide else value

    args, kwargs = mapped(widen, (args, kwargs))
    kwargs = {key: value for key, value in kwargs.items() if key != "out"}
    if func._schema.overload_name.endswith("out"):
        func = _functional(func)
    name = func._schema.name.split("::")[1]
    with torch.no_grad():
        out = func(*args, **kwargs)
    outputs = [value for value in leaves(out) if isinstance(value, Tensor)]
    seen = {id(value) for value in outputs}
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for item in leaves(value):
                if isinstance(item, Tensor) and id(item) not in seen:
                    outputs.append(item)
    if name in _NEVER_ZERO or name.removeprefix("_foreach_").rstrip("_") in _NEVER_ZERO:
        operand = next(value for value in leaves(args) if isinstance(value, Tensor))
        tiny = torch.finfo(torch.float64).tiny
        is_finite = torch.isfinite(operand) if operand.shape == outputs[0].shape else torch.tensor(True)
        outputs[0] = torch.where((outputs[0] == 0) & is_finite, tiny, outputs[0])
    return outputs


def _functional(func: Any) -> Any:
    overload = func._schema.overload_name.removesuffix("_out").removesuffix("out") or "default"
    return getattr(func.overloadpacket, overload)


def _as_view(made: Tensor, produced: Any, wanted: Any, actual: Tensor | None) -> Tensor:
    """The part of a recomputed tensor that a view of its storage shows; what it does not cover is as in memory."""

    def end(geometry: Any) -> int:
        shape, stride, offset = geometry
        return int(offset) + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)

    length = max(end(produced), end(wanted))
    if length > _ELEMENTS:
        raise LostError
    buffer = made.new_zeros(length)
    if actual is not None:
        _, stride, offset = wanted
        once = [slice(0, 1) if step == 0 else slice(None) for step in stride]  # an expanded view repeats elements
        part = widened(actual)[tuple(once)] if actual.ndim else widened(actual)
        buffer.as_strided(part.shape, stride, offset).copy_(part)
    buffer.as_strided(*produced).copy_(made.reshape(produced[0]))
    return buffer.as_strided(*wanted)
