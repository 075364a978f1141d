"""What the dispatcher's operators do to their arguments."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from diagnostics.tracing.nested import leaves

_EMPTY = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_", "set_"}
# Their first argument is written without being read.
_OVERWRITES = {"copy_", "fill_", "zero_", "uniform_", "normal_", "random_", "bernoulli_", "exponential_", "set_"}
_OVERWRITES |= {"_foreach_copy_", "_foreach_zero_", "log_normal_", "cauchy_", "geometric_"}
# Schemas that do not say that running statistics are written: positions of running_mean and running_var.
_HIDDEN_WRITES = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4), "miopen_batch_norm": (3, 4)}
# fsdp's gather copies its inputs into the buffer that it is given, and returns views of it.
_HIDDEN_OVERWRITES = {"all_gather_copy_in": (1,)}
_REDUCING = {"allreduce_", "allreduce_coalesced_", "reduce_", "broadcast_"}  # they read what they write
_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
_NOT_ELEMENTWISE = {"_foreach_norm", "_foreach_max", "_foreach_copy_"}
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "pow", "lerp", "addcmul", "addcdiv"}


@dataclass(frozen=True)
class Operator:
    """What a dispatcher entry does to its arguments."""

    name: str
    """Without namespace and overload, such as `add_`."""
    namespace: str
    is_view: bool
    """Its result shares memory with an argument, and nothing is written."""
    is_empty: bool
    """Its result is memory that nobody has written yet."""
    is_elementwise: bool
    is_foreach: bool
    """It takes lists, and works on one place of them after the other."""
    writes: tuple[int | str, ...]
    """Positions (int) and names (str) of the arguments that it writes to."""
    overwrites: bool
    """It writes to them without reading them."""

    @property
    def is_collective(self) -> bool:
        """Whether it exchanges values with other ranks."""
        return self.namespace in _COLLECTIVES


@cache
def operator(func: OpOverload) -> Operator:
    """What is known of a dispatcher entry."""
    schema = func._schema
    namespace, name = schema.name.split("::")
    writes: list[int | str] = [*_HIDDEN_WRITES.get(name, ()), *_HIDDEN_OVERWRITES.get(name, ())]
    overwrites = name in _OVERWRITES or name in _HIDDEN_OVERWRITES
    if namespace == "c10d" and name.endswith("_") and "barrier" not in name:  # its schemas do not say so
        writes.append(0)
        overwrites = name not in _REDUCING
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes.append(argument.name if argument.kwarg_only else position)
    returns_alias = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    is_foreach = name.startswith("_foreach_")
    return Operator(
        name=name,
        namespace=namespace,
        is_view=returns_alias and not writes,
        is_empty=name in _EMPTY,
        is_elementwise=(torch.Tag.pointwise in func.tags or is_foreach) and name not in _NOT_ELEMENTWISE,
        is_foreach=is_foreach,
        writes=tuple(writes),
        overwrites=overwrites,
    )


def plain_name(func: OpOverload) -> str:
    """Without what says how it is called: `addcdiv` of `aten._foreach_addcdiv_.Scalar`."""
    return operator(func).name.removeprefix("_foreach_").strip("_")


def is_arithmetic(name: str) -> bool:
    """Whether an operator computes with a number it is given, rather than puts it somewhere or cuts off there."""
    return name.removeprefix("_foreach_").rstrip("_") in _ARITHMETIC


def wait_for(out: Any) -> None:
    """A collective's result `out` is there only once its work is done."""
    for item in leaves(out):
        if isinstance(item, torch.ScriptObject) and item._type().name() == "Work":  # type: ignore[attr-defined]
            item = torch.distributed.Work.unbox(item)
        if not isinstance(item, Tensor) and hasattr(item, "wait"):
            item.wait()
