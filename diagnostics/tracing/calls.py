"""One call of an operator: its arguments as they were before it, and the same call again in float64."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from diagnostics.tracing.nested import mapped, tensor_leaves

# Positive wherever their argument is finite; float64 rounds them to zero, too, only later.
_NEVER_ZERO = {"exp", "exp2", "_softmax", "_safe_softmax", "sigmoid", "softplus", "exp_", "sigmoid_"}


@dataclass(slots=True)
class OperatorCall:
    """A call that is about to run, or, `frozen`, one that can be run again."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    copies: dict[int, Tensor | None] = field(default_factory=dict)
    """Copies of the tensors that the call overwrites, by `id`; None where they are too large to copy."""
    references: Any = None
    """(args, kwargs) with a reference instead of each tensor: `recomputation` finds their past by it."""

    def value(self, tensor: Tensor) -> Tensor | None:
        """An argument as it was before the call, in its shape; None where that is lost."""
        return self.copies.get(id(tensor), tensor)

    def values(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with what was overwritten as it was before, None where that is lost."""
        args, kwargs = mapped(lambda a: self.value(a) if isinstance(a, Tensor) else a, (self.args, self.kwargs))
        return args, kwargs

    @property
    def num_bytes(self) -> int:
        """Of all tensors among the arguments."""
        return sum(t.numel() * t.dtype.itemsize for t in tensor_leaves((self.args, self.kwargs)))

    def frozen(self, limit: int) -> "OperatorCall | None":
        """The call with copies of its tensors, safe from later writes; None where they exceed `limit` bytes."""
        args, kwargs = self.values()
        if OperatorCall(self.func, args, kwargs).num_bytes > limit:
            return None
        args, kwargs = mapped(lambda a: a.detach().clone() if isinstance(a, Tensor) else a, (args, kwargs))
        return OperatorCall(self.func, args, kwargs)


def element(args: tuple[Any, ...], kwargs: dict[str, Any], slot: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a foreach call for one place of its lists, each list cut down to one item."""
    lists = [value for value in [*args, *kwargs.values()] if isinstance(value, (list, tuple))]
    length = len(lists[0]) if lists else 0

    def pick(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and len(value) == length and slot < length:
            return [value[slot]]
        return value

    return tuple(pick(value) for value in args), {key: pick(value) for key, value in kwargs.items()}


def widened(tensor: Tensor) -> Tensor:
    """A copy in float64 (complex128) and the same shape; integers and booleans keep their dtype."""
    tensor = tensor.detach()
    if tensor.is_complex():
        return tensor.to(torch.complex128, copy=True)
    return tensor.to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.clone()


def run_in_float64(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Run an operator on copies of its arguments in float64; its outputs, of any shape, and after
    them what it wrote in place.

    Raises:
        RuntimeError, TypeError, ValueError, IndexError, NotImplementedError: it cannot be run like that.
    """
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
    outputs = tensor_leaves(out)
    seen = {id(value) for value in outputs}
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            outputs += [item for item in tensor_leaves(value) if id(item) not in seen]
    if name in _NEVER_ZERO or name.removeprefix("_foreach_").rstrip("_") in _NEVER_ZERO:
        operand = tensor_leaves(args)[0]
        tiny = torch.finfo(torch.float64).tiny
        is_finite = torch.isfinite(operand) if operand.shape == outputs[0].shape else torch.tensor(True)
        outputs[0] = torch.where((outputs[0] == 0) & is_finite, tiny, outputs[0])
    return outputs


def _functional(func: OpOverload) -> OpOverload:
    """What returns the result that an `out=` overload writes."""
    overload = func._schema.overload_name.removesuffix("_out").removesuffix("out") or "default"
    functional: OpOverload = getattr(func.overloadpacket, overload)
    return functional
