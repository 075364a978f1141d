"""What the operand is that an operator failed at: which operators made it, whether it counts, how large it is."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.tensors import is_inexact, wide
from diagnostics.tracing.calls import OperatorCall, element
from diagnostics.tracing.nested import leaves
from diagnostics.tracing.operands import stored
from diagnostics.tracing.operators import operator, plain_name
from diagnostics.tracing.provenance import Reference
from diagnostics.tracing.recomputation import Recorder

_POSITIONS = {"div": 1, "true_divide": 1, "remainder": 1, "fmod": 1, "xlogy": 1, "addcdiv": 2}
_MOST = 12  # operators that are followed
_ELEMENTS = 2**20  # of a tensor that is looked at
_SUMS = {"sum", "count_nonzero", "index_add", "scatter_add"}
_COUNTING = _SUMS | {"to_copy", "clone", "clamp", "clamp_min"}

_OF_COUNTS = {"pow", "rsub", "sub", "neg", "add", "mul", "fill", "zero", "to_copy", "copy", "clone", "lift_fresh"}
_OF_COUNTS |= {"scalar_tensor", "full", "zeros", "ones", "sqrt", "detach"}


@dataclass(frozen=True)
class Making:
    """What is known of an operand; the defaults where nothing is."""

    ops: tuple[str, ...] = ()
    """Operators behind it, the last one first, as far as they are remembered; every root is `sqrt`."""
    is_single: bool = True
    """It is one number."""
    is_number: bool = False
    """It is a number of Python."""
    is_count: bool = False
    """It counts something: integers, or a sum of booleans or integers."""
    typical: float | None = None
    """Median magnitude of its finite elements other than 0; None where there is none."""
    from_gradient: bool = False
    """It was computed from parameters' gradients."""
    has_slope: bool = False
    """Backward goes through it."""

    @property
    def counts_steps(self) -> bool:
        """Whether it may be a count of steps, or a correction `1 - beta ** step` made from one."""
        return not self.from_gradient and set(self.ops) <= _OF_COUNTS


UNKNOWN = Making()


def making_of(call: OperatorCall, recorder: Recorder, slot: int) -> Making:
    """Of the operand that decides whether a call has a result: the denominator of a division, else the first one.

    Args:
        slot: which of the call's outputs is bad.
    """
    args, kwargs = call.args, call.kwargs
    if operator(call.func).is_foreach:
        args, kwargs = element(args, kwargs, slot)
    given = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in args]
    position = _POSITIONS.get(plain_name(call.func), 0)
    tensor = given[position] if position < len(given) else None
    if not isinstance(tensor, Tensor):
        return Making(is_number=isinstance(tensor, (int, float)))
    reference = recorder.reference(call, tensor)
    value = call.value(tensor)
    return Making(
        ops=() if reference is None else _ops(reference),
        is_single=tensor.numel() == 1,
        is_count=_counts(tensor, reference),
        typical=None if value is None or not is_inexact(value) else _typical(value),
        from_gradient=reference is not None and reference.storage.from_gradient,
        has_slope=tensor.requires_grad,
    )


def _inputs(reference: Reference) -> tuple[str | None, list[Reference]]:
    """(operator, its tensors) of what made a tensor."""
    producer = reference.storage.producer_of(reference.version)
    if producer is None:
        return None, []
    args, kwargs = producer.args, producer.kwargs
    if producer.is_foreach:
        args, kwargs = element(args, kwargs, producer.slot)
    name, exponent = plain_name(producer.func), args[1] if len(args) > 1 else None
    if name == "pow" and isinstance(exponent, (int, float)) and 0 < exponent < 1:
        name = "sqrt"
    return name, [one for one in leaves((args, kwargs)) if isinstance(one, Reference)]


def _ops(reference: Reference) -> tuple[str, ...]:
    found: list[str] = []
    queue = deque([reference])
    while queue and len(found) < _MOST:
        name, inputs = _inputs(queue.popleft())
        if name is not None:
            found.append(name)
            queue.extend(inputs)
    return tuple(found)


def _counts(tensor: Tensor, reference: Reference | None) -> bool:
    if not is_inexact(tensor):
        return True
    current, is_sum = reference, False
    for _ in range(_MOST):
        name, inputs = (None, []) if current is None else _inputs(current)
        if name not in _COUNTING or not inputs:
            return False
        is_sum |= name in _SUMS
        current = inputs[-1] if name in ("index_add", "scatter_add") else inputs[0]
        made_of = current.tensor()
        if made_of is not None and not is_inexact(made_of):
            return is_sum
    return False


def _typical(tensor: Tensor) -> float | None:
    numbers = wide(stored(tensor.detach())).reshape(-1)[:_ELEMENTS].abs()
    numbers = numbers[torch.isfinite(numbers) & (numbers != 0)]
    return float(numbers.median()) if numbers.numel() else None
