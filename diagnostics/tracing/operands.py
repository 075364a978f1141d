"""What an operator computed with at its first bad element, as it was before the call, and would give in float64."""

from typing import Any

import torch
from torch import Tensor

from diagnostics.tensors import is_inexact, strided, wide
from diagnostics.tracing.bad_values import BadValues
from diagnostics.tracing.calls import OperatorCall, element, run_in_float64
from diagnostics.tracing.nested import leaves, tensor_leaves
from diagnostics.tracing.operators import operator
from diagnostics.tracing.provenance import storage_key
from diagnostics.tracing.recomputation import LostError, Recorder
from diagnostics.tracing.zero import Rounded, how_it_became_zero

# What an operator raises that cannot be run once more in float64.
NO_REFERENCE = (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError)


class Operands:
    """Of a call that has just run; of a foreach operator, those of one place in its lists.

    Attributes:
        args, kwargs: the arguments with the content that they had before the call.
    """

    def __init__(self, call: OperatorCall, seen: BadValues, recorder: Recorder) -> None:
        self._call, self._seen, self._recorder = call, seen, recorder
        self._originals: tuple[Any, ...] = call.args
        self.args, self.kwargs = call.values()
        self._slot = seen.slot
        if operator(call.func).is_foreach:
            self._originals, _ = element(call.args, call.kwargs, seen.slot)
            self.args, self.kwargs = element(self.args, self.kwargs, seen.slot)
            self._slot = 0

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, any shape; of a sparse one the values that it stores."""
        return [stored(tensor) for tensor in tensor_leaves((self.args, self.kwargs))]

    @property
    def inexact(self) -> list[Tensor]:
        """The floating-point and complex ones."""
        return [tensor for tensor in self.tensors if is_inexact(tensor)]

    @property
    def scalars(self) -> list[float]:
        """The Python floats among the arguments."""
        return [value for value in leaves((self.args, self.kwargs)) if isinstance(value, float)]

    def at_index(self, tensor: Tensor) -> Tensor:
        """The element of an operand (any shape that broadcasts) that meets the first bad one; a scalar. Of a sparse
        operand that of the values that it stores, if the result has their shape.

        Raises:
            RuntimeError, IndexError: the operand does not broadcast to the result.
        """
        if tensor.layout is not torch.strided:
            tensor = stored(tensor)
            if tensor.shape != self._seen.shape:
                raise RuntimeError("a product of a sparse matrix: no element of it belongs to one of the result")
        return tensor.expand(self._seen.shape)[self._seen.index] if self._seen.shape else tensor.reshape(())

    def by_name(self) -> dict[str, Any]:
        """Numbers by the names in the operator's schema; a text for a tensor that does not broadcast."""
        found: dict[str, Any] = {}
        for argument, value in zip(self._call.func._schema.arguments, self.args, strict=False):
            found |= self._described(argument.name, value)
        for name, value in self.kwargs.items():
            found |= self._described(name, value)
        return found

    def _described(self, name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Tensor):
            try:
                number = self.at_index(value)
            except (RuntimeError, IndexError):
                if not is_inexact(value) or not value.numel():
                    return {name: f"{tuple(value.shape)}"}
                numbers = wide(stored(value))
                finite = numbers[torch.isfinite(numbers)].abs()
                largest = f"{float(finite.max()):.6g}" if finite.numel() else "none finite"
                return {name: f"{tuple(value.shape)}, largest magnitude {largest}"}
            return {name: complex(number) if number.is_complex() else number.item()}
        return {name: value} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}

    def numbers(self) -> list[float]:
        """The numbers of `by_name`; of complex ones the magnitude."""
        found = self.by_name().values()
        return [abs(v) if isinstance(v, complex) else float(v) for v in found if isinstance(v, (int, float, complex))]

    def argument(self, position: int) -> Any:
        """One argument as it was before the call; None where there are fewer."""
        return _at(self.args, position)

    # In float64

    def exact(self, position: int) -> float | None:
        """One argument at the bad element, as it would be had the operators before used float64; None if lost."""
        value = self.argument(position)
        if not isinstance(value, Tensor):
            return float(value) if isinstance(value, (int, float)) else None
        try:
            exact = self._recorder.exact_argument(self._call, _at(self._originals, position))
            return _real(self.at_index(exact))
        except (LostError, RuntimeError):
            return None

    def how_it_became_zero(self, position: int) -> tuple[Rounded, ...]:
        """The operators that made one argument 0 at the bad element though it is not in float64; see `zero`."""
        original = _at(self._originals, position)
        reference = self._recorder.reference(self._call, original) if isinstance(original, Tensor) else None
        if reference is None or reference.geometry[0] != self._seen.shape:
            return ()
        return how_it_became_zero(reference, self._seen.index, self._recorder)

    def storages(self) -> dict[str, int]:
        """Keys of the storages of the arguments, by the names in the operator's schema."""
        named = zip(self._call.func._schema.arguments, self._originals, strict=False)
        found = {
            argument.name: value[0] if isinstance(value, list) and len(value) == 1 else value
            for argument, value in named
        }
        values = {name: strided(value) for name, value in found.items() if isinstance(value, Tensor)}
        return {name: storage_key(value) for name, value in values.items() if value is not None}

    def counts_nothing(self, position: int, *, is_whole_enough: bool) -> bool:
        """Whether one argument, which is 0, is a sum of which no term went into the bad element.

        is_whole_enough: that it is a whole number says so, too, as a length does.
        """
        original = _at(self._originals, position)
        if not isinstance(original, Tensor):
            return is_whole_enough and isinstance(original, int)
        if is_whole_enough and not is_inexact(original):
            return True
        terms = self._recorder.num_summed(self._call, original)
        return terms is not None and float(self.at_index(terms)) == 0

    def result(self) -> Tensor:
        """The whole operator again in float64, at the bad element; a scalar.

        Raises:
            one of `NO_REFERENCE`: it cannot be run like that.
        """
        output = stored(run_in_float64(self._call.func, self.args, self.kwargs)[self._slot])
        return output[self._seen.index] if self._seen.shape else output

    def result_at_index(self) -> float | None:
        """An elementwise operator again in float64, on the operands at the bad element alone; None if it cannot.

        Of a complex result the magnitude.
        """

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.at_index(value).clone()
            return [pick(item) for item in value] if isinstance(value, list) else value

        try:
            args = tuple(pick(value) for value in self.args)
            kwargs = {key: pick(value) for key, value in self.kwargs.items()}
            output = run_in_float64(self._call.func, args, kwargs)[self._slot]
        except NO_REFERENCE:
            return None
        return _real(output.reshape(-1)[0])


def _real(number: Tensor) -> float:
    """A scalar; of a complex one the magnitude."""
    return float(number.abs() if number.is_complex() else number)


def stored(tensor: Tensor) -> Tensor:
    """The values that a sparse tensor stores, (stored, ...); a strided tensor of any shape as it is."""
    values = None if tensor.layout is torch.strided else strided(tensor)
    return tensor if values is None else values


def _at(args: tuple[Any, ...], position: int) -> Any:
    value = args[position] if position < len(args) else None
    return value[0] if isinstance(value, list) and len(value) == 1 else value
