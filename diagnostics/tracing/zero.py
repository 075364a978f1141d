"""How an operand became zero that would not be zero in float64: the operators behind it, from the rounding on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.tensors import is_inexact, strided
from diagnostics.tracing.calls import element
from diagnostics.tracing.operators import operator, plain_name
from diagnostics.tracing.provenance import Producer, Reference, storage_key
from diagnostics.tracing.recomputation import LostError, Recorder

_MOST = 8  # operators


@dataclass(frozen=True)
class Rounded:
    """One operator whose result is 0 here, and is not in float64."""

    op: str
    """Operator (`addcmul`)."""
    storage: int | None
    """Key of the storage that it wrote, where that is in memory: it may have a name."""
    exact: float
    """The result had it, and what came before it, been computed in float64."""
    dtype: torch.dtype
    """Of the result."""
    operands: dict[str, float]
    """The arguments at this element, by their names in the operator's schema."""


def how_it_became_zero(reference: Reference, index: tuple[int, ...], recorder: Recorder) -> tuple[Rounded, ...]:
    """The operators that made element `index` of a tensor 0, the one that rounded first at the beginning.

    Followed back through elementwise operators of tensors of this shape, as far as they are remembered; empty where
    that shows no rounding.
    """
    found: list[Rounded] = []
    shape = reference.geometry[0]
    exact = _exact_at(reference, index, recorder)
    while exact and len(found) < _MOST:
        producer, actual = reference.storage.producer_of(reference.version), _actual(reference)
        if producer is None or producer.geometry != reference.geometry or not operator(producer.func).is_elementwise:
            break
        if actual is not None and _at(actual, index) != 0:
            break
        operands, inputs = _operands(producer, index, shape)
        dtype = actual.dtype if actual is not None else next((t.dtype for t in inputs.values()), torch.float32)
        found.append(Rounded(plain_name(producer.func), _key(actual), exact, dtype, operands))
        zeros = [
            one
            for one in _references(producer)
            if one.geometry[0] == shape and (before := _actual(one)) is not None and _at(before, index) == 0
        ]
        behind = [(one, value) for one in zeros if (value := _exact_at(one, index, recorder))]
        if len(behind) != 1:
            break
        reference, exact = behind[0]
    return tuple(reversed(found))


def _references(producer: Producer) -> list[Reference]:
    args, kwargs = _own(producer)
    flat = [item for value in (*args, *kwargs.values()) for item in (value if isinstance(value, list) else [value])]
    return [value for value in flat if isinstance(value, Reference)]


def _own(producer: Producer) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if producer.is_foreach:
        return element(producer.args, producer.kwargs, producer.slot)
    return producer.args, producer.kwargs


def _operands(
    producer: Producer, index: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Numbers at the element, and the tensors that are in memory, by the names of the schema."""
    args, kwargs = _own(producer)
    named = {argument.name: value for argument, value in zip(producer.func._schema.arguments, args, strict=False)}
    numbers: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in (named | kwargs).items():
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Reference):
            tensor = _actual(value)
            if tensor is not None and is_inexact(tensor) and not tensor.is_complex():
                tensors[name] = tensor
                number = _at(tensor, index, shape)
                numbers |= {} if number is None else {name: number}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers, tensors


def _actual(reference: Reference) -> Tensor | None:
    """The tensor as it was then, where it is in memory."""
    tensor = reference.tensor()
    return tensor if tensor is not None and reference.storage.version == reference.version else reference.before


def _at(tensor: Tensor, index: tuple[int, ...], shape: tuple[int, ...] | None = None) -> float | None:
    """One element; None where the tensor has none there."""
    try:
        return float((tensor if shape is None else tensor.expand(shape))[index])
    except (RuntimeError, IndexError, ValueError):
        return None


def _exact_at(reference: Reference, index: tuple[int, ...], recorder: Recorder) -> float | None:
    try:
        return _at(recorder.exact(reference), index)
    except LostError:
        return None


def _key(tensor: Tensor | None) -> int | None:
    values = None if tensor is None else strided(tensor)
    return None if values is None else storage_key(values)
