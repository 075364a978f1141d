"""What an operand would have been in float64: the recent past of each tensor, kept as far as it is cheap.

A zero denominator that is not zero in float64 has underflowed; a result that is finite in float64 has overflowed.
The operators that led to a tensor are recomputed, back to values that are still in memory.
"""

import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from diagnostics.tensors import is_inexact
from diagnostics.tracing.calls import OperatorCall, element, run_in_float64, widened
from diagnostics.tracing.nested import leaves, mapped, tensor_leaves
from diagnostics.tracing.provenance import Geometry, Memory, Producer, Reference

_HISTORY = 6  # writes remembered of one storage
_CLONE_LIMIT = 64 * 2**20  # bytes that a call may overwrite and still be copied before
_KEPT_BYTES = 512 * 2**20  # inputs of recent calls that are kept alive
_DEPTH = 12  # operators that are recomputed one after the other
_ELEMENTS = 2**27  # of the largest tensor that is recomputed
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


def _reference_of(call: OperatorCall, tensor: Tensor) -> Reference | None:
    flat, references = leaves((call.args, call.kwargs)), leaves(call.references)
    for value, reference in zip(flat, references, strict=True):
        if value is tensor and isinstance(reference, Reference):
            return reference
    return None


def _geometry(tensor: Tensor) -> Geometry:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


class Recorder:
    """Remembers how tensors were made."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kept: deque[tuple[int, list[Tensor]]] = deque()
        self._num_bytes = 0

    def before(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], mutated: list[Tensor]
    ) -> OperatorCall:
        """A call that is about to run; of `mutated`, tensors (any shape) that it writes to, copies are kept."""
        call = OperatorCall(func, args, kwargs)
        if mutated:
            small = sum(t.numel() * t.dtype.itemsize for t in mutated) <= _CLONE_LIMIT
            for tensor in mutated:
                call.copies[id(tensor)] = tensor.detach().clone() if small else None
        call.references = mapped(lambda a: self._refer(a, call) if isinstance(a, Tensor) else a, (args, kwargs))
        return call

    def _refer(self, tensor: Tensor, call: OperatorCall) -> Any:
        if tensor.layout is not torch.strided:
            return tensor
        record = self._memory.storage(tensor)
        copied = call.copies.get(id(tensor))
        return Reference(weakref.ref(tensor), record, record.version, _geometry(tensor), copied)

    def after(self, call: OperatorCall, written: list[Tensor]) -> None:
        """Note what wrote these tensors (any shape). Their storages' versions count this write already."""
        namespace, name = call.func._schema.name.split("::")
        if namespace not in ("aten", "prims"):
            return  # a collective must not be run again, and what others do is unknown
        args, kwargs = call.references
        for slot, tensor in enumerate(written):
            if not is_inexact(tensor) and tensor.dtype is torch.bool:
                continue
            record = self._memory.storage(tensor)
            is_foreach = name.startswith("_foreach_")
            record.producers[record.version] = Producer(
                call.func, name, args, kwargs, slot, _geometry(tensor), is_foreach
            )
            record.producers.pop(record.version - _HISTORY, None)
        self._keep(tensor_leaves((call.args, call.kwargs)))

    def _keep(self, tensors: list[Tensor]) -> None:
        size = sum(t.numel() * t.dtype.itemsize for t in tensors if t.layout is torch.strided)
        self._kept.append((size, tensors))
        self._num_bytes += size
        while self._num_bytes > _KEPT_BYTES or len(self._kept) > 256:
            self._num_bytes -= self._kept.popleft()[0]

    # Recomputation

    def exact_argument(self, call: OperatorCall, tensor: Tensor) -> Tensor:
        """An argument of a call, in its shape and float64, as it would be had the operators before it used float64.

        Raises:
            LostError: it was overwritten, and what made it is forgotten.
        """
        reference = _reference_of(call, tensor)
        return widened(tensor) if reference is None else self._value(reference, _DEPTH)

    def num_summed(self, call: OperatorCall, tensor: Tensor) -> Tensor | None:
        """How many non-zero terms went into each element of an argument that is a sum or count: float64, its shape.

        None where it is neither.
        """
        reference = _reference_of(call, tensor)
        for _ in range(_DEPTH):
            producer = None if reference is None else reference.storage.producers.get(reference.version)
            if producer is None:
                return None
            inputs = [a for a in leaves((producer.args, producer.kwargs)) if isinstance(a, Reference)]
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

    def _exact(self, reference: Reference, actual: Tensor | None, depth: int) -> Tensor:
        """What made a tensor, run again in float64; `actual`, its value in memory, where that cannot be."""
        producer = reference.storage.producers.get(reference.version)
        numel = torch.Size(reference.geometry[0]).numel()
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
        if producer.geometry == reference.geometry:
            return made
        return _as_view(made, producer.geometry, reference.geometry, actual)

    def _run(self, producer: Producer, depth: int) -> Tensor:
        args, kwargs = producer.args, producer.kwargs
        if producer.is_foreach:
            args, kwargs = element(args, kwargs, producer.slot)

        def resolve(value: Any) -> Any:
            return self._value(value, depth) if isinstance(value, Reference) else value

        args, kwargs = mapped(resolve, (args, kwargs))
        slot = 0 if producer.is_foreach else producer.slot
        return run_in_float64(producer.func, args, kwargs)[slot]

    def _value(self, reference: Reference, depth: int) -> Tensor:
        tensor = reference.tensor()
        intact = tensor is not None and reference.storage.version == reference.version
        actual = tensor if intact else reference.before
        return self._exact(reference, actual, depth)


def _as_view(made: Tensor, produced: Geometry, wanted: Geometry, actual: Tensor | None) -> Tensor:
    """The part of a recomputed tensor that a view of its storage shows; what it does not cover is as in memory."""

    def end(geometry: Geometry) -> int:
        shape, stride, offset = geometry
        return offset + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)

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
