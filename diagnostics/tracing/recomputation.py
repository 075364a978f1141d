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
from diagnostics.tracing.operators import Operator
from diagnostics.tracing.provenance import Geometry, Memory, Producer, Reference, Storage

_HISTORY = 6  # writes remembered of one storage
_CLONE_LIMIT = 64 * 2**20  # bytes that a call may overwrite and still be copied before
_KEPT_BYTES = 512 * 2**20  # inputs of recent calls that are kept alive
_DEPTH = 12  # operators that are recomputed one after the other
_ELEMENTS = 2**27  # of the largest tensor that is recomputed
_SUMS = {"sum", "count_nonzero", "nansum"}
_COUNTS = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "bincount", "histc"}
# Between a count and its use as a denominator.
_PASS_ON = {"_to_copy", "clone", "mul", "mul_", "clamp", "clamp_min", "copy_", "div", "squeeze", "_unsafe_view"}
# What makes a mask, what makes tensors of one number, and what a mask goes through before it is summed.
_CHOICES = {"eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_and", "isfinite"}
_CONSTANTS = {"zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "scalar_tensor"}
_CARRYING = {"_to_copy", "clone", "copy", "mul", "where", "masked_fill", "cat", "stack", "index", "gather", "clamp"}
_CARRYING |= {
    "sub",
    "rsub",
    "sum",
    "repeat",
    "scatter",
    "select_backward",
    "_unsafe_view",
    "clamp_min",
    "div",
    "detach",
}
# Random or uninitialised: a second call gives other values.
_NOT_REPEATABLE = {"native_dropout", "bernoulli", "bernoulli_", "rand", "randn", "rand_like", "randn_like", "normal_"}
_NOT_REPEATABLE |= {"uniform_", "random_", "exponential_", "multinomial", "normal", "randint", "randperm"}
# A collective must not be run again.
_COLLECTIVES = {"allreduce_", "all_reduce", "all_reduce_", "wait_tensor", "broadcast_", "reduce_"}
_NOT_REPEATABLE |= _COLLECTIVES
_NOT_REPEATABLE |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}


_NOTHING: dict[str, Any] = {}


class LostError(Exception):
    """A value is neither in memory nor can it be recomputed."""


def _reference_of(call: OperatorCall, tensor: Tensor) -> Reference | None:
    flat, references = leaves((call.args, call.kwargs)), leaves(call.references)
    for value, reference in zip(flat, references, strict=True):
        if value is tensor and isinstance(reference, Reference):
            return reference
    return None


def _forget(newest: Producer, version: int) -> None:
    """Let go of what wrote this version of a storage, and those before."""
    while newest.earlier is not None and newest.earlier.version > version:
        newest = newest.earlier
    newest.earlier = None


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
        call.references = self._referred((args, kwargs), call)
        return call

    def _referred(self, tree: Any, call: OperatorCall) -> Any:
        """The same containers with a reference in the place of each tensor."""
        if isinstance(tree, Tensor):
            return self._refer(tree, call)
        kind = type(tree)
        if kind is tuple:
            return tuple([self._referred(part, call) for part in tree])
        if kind is list:
            return [self._referred(part, call) for part in tree]
        if kind is dict and tree:
            return {key: self._referred(part, call) for key, part in tree.items()}
        return tree

    def _refer(self, tensor: Tensor, call: OperatorCall) -> Any:
        if tensor.layout is not torch.strided:
            return tensor
        record = self._memory.storage(tensor)
        copied = call.copies.get(id(tensor)) if call.copies else None
        if copied is None:
            return self._memory.reference(tensor, record)
        return Reference(weakref.ref(tensor), record, record.version, self._memory.geometry(tensor), copied)

    def after(
        self, op: Operator, call: OperatorCall, inputs: list[Tensor], written: list[Tensor], records: list[Storage]
    ) -> None:
        """Note what wrote these tensors (any shape). Their storages' versions count this write already.

        Args:
            inputs: strided tensors that the call read, any shape.
            records: of what was written.
        """
        if op.namespace not in ("aten", "prims") and op.name not in _COLLECTIVES:
            return  # what others do is unknown
        args, kwargs = call.references
        kwargs = kwargs or _NOTHING
        for slot, (tensor, record) in enumerate(zip(written, records, strict=True)):
            if tensor.dtype is torch.bool:
                continue
            geometry, before = self._memory.geometry(tensor), record.producer
            record.producer = Producer(
                call.func, op.name, args, kwargs, slot, geometry, op.is_foreach, record.version, before
            )
            if before is not None:
                _forget(before, record.version - _HISTORY)
        self._keep(tensor_leaves((call.args, call.kwargs)) if op.writes else inputs)

    def _keep(self, tensors: list[Tensor]) -> None:
        size = 0
        for tensor in tensors:
            if tensor.layout is torch.strided:
                size += tensor.nbytes
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

    def exact(self, reference: Reference) -> Tensor:
        """A past argument in float64 and its shape, as `exact_argument`.

        Raises:
            LostError: it was overwritten, and what made it is forgotten.
        """
        return self._value(reference, _DEPTH)

    def reference(self, call: OperatorCall, tensor: Tensor) -> Reference | None:
        """What is remembered of an argument of a call; None of one that is not strided."""
        return _reference_of(call, tensor)

    def num_summed(self, call: OperatorCall, tensor: Tensor) -> Tensor | None:
        """How many non-zero terms went into each element of an argument that is a sum or count: float64, its shape.

        None where it is neither.
        """
        reference, is_shifted = _reference_of(call, tensor), False  # n - 1 counts, too
        divided = {id(one.storage) for one in leaves(call.references) if isinstance(one, Reference)}
        for _ in range(_DEPTH):
            producer = None if reference is None else reference.storage.producer_of(reference.version)
            if producer is None:
                return None
            inputs = [a for a in leaves((producer.args, producer.kwargs)) if isinstance(a, Reference)]
            if not inputs:
                return None
            if producer.name in _COUNTS or (
                is_shifted and producer.name in _SUMS and self._selects(inputs[0], _DEPTH, divided)
            ):
                return (tensor != 0).double()
            if producer.name in _SUMS:
                if not self._selects(inputs[0], _DEPTH, divided):
                    return None
                try:
                    terms = (self._value(inputs[0], 0) != 0).double()
                    return run_in_float64(producer.func, (terms, *producer.args[1:]), {})[0].reshape(tensor.shape)
                except (LostError, RuntimeError, TypeError):
                    return None
            shifts = producer.name in ("sub", "sub_") and len(inputs) == 1
            if producer.name not in _PASS_ON | _COLLECTIVES and not shifts:
                return None
            is_shifted |= shifts
            reference = inputs[0]
        return None

    def _selects(self, reference: Reference, depth: int, divided: set[int]) -> bool:
        """Whether terms of a sum say what counts, as a mask does, rather than being data that may be zero.

        divided: `id` of the records of what the sum divides: zeros over their own sum are a vector of length 0.
        """
        tensor, producer = reference.tensor(), reference.storage.producer_of(reference.version)
        if tensor is not None and (not is_inexact(tensor) or not tensor.numel()):
            return True
        if producer is None or producer.name in _CONSTANTS:
            value = tensor if tensor is not None and reference.storage.version == reference.version else None
            if value is None or not bool(((value == 0) | (value == 1)).all()):
                return False
            return id(reference.storage) not in divided or bool((value == 1).any())
        if producer.name in _CHOICES:
            return True
        inputs = [a for a in leaves((producer.args, producer.kwargs)) if isinstance(a, Reference)]
        if not depth or not inputs or producer.name.rstrip("_") not in _CARRYING:
            return False
        return any(self._selects(one, depth - 1, divided) for one in inputs)

    def _exact(self, reference: Reference, actual: Tensor | None, depth: int) -> Tensor:
        """What made a tensor, run again in float64; `actual`, its value in memory, where that cannot be."""
        producer = reference.storage.producer_of(reference.version)
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
