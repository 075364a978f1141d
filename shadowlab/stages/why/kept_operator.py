"""The call that an incident's operator.pt keeps, as far as a file from elsewhere may make it run.

Loading such a file runs nothing, but what it names would be run, on arguments of its choice. So the operator comes
from a list (`allowed_operators`), the arguments are plain tensors and numbers, and a rehearsal without memory says
beforehand how large the results will be.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from diagnostics.incidents import load_evidence
from shadowlab.stages.why.allowed_operators import SIZED_BY_VALUES, find_operator, objection

_OPERAND_BYTES = 256 * 2**20  # as much as a trace keeps
_RESULT_ELEMENTS = 2**28  # 2 GiB in float64
_LEAVES = 2**17  # a fused optimizer has seven lists of as many tensors as a model has parameters
_PLAIN = (type(None), bool, int, float, complex, torch.dtype)
_TEXT = 64  # characters; such as a rounding mode


@dataclass(frozen=True)
class KeptCall:
    """An operator with its arguments, ready to be run."""

    name: str
    operator: OpOverload
    """One of the list."""
    args: list[Any]
    """Plain tensors on one device, numbers, and lists of them."""
    kwargs: dict[str, Any]
    """Likewise, by name."""


def read_call(file: Path, device: torch.device) -> KeptCall:
    """The call that `file` keeps, its tensors on `device`. Nothing of it is run.

    Raises:
        ValueError: the file is damaged, or names what may not be run, or with these arguments; one line that names it.
    """
    content = load_evidence(file, device)
    try:
        return _checked(content, device)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _checked(content: Any, device: torch.device) -> KeptCall:
    if type(content) is not dict or not {"operator", "args", "kwargs"} <= content.keys():
        raise ValueError("holds no operator with its arguments; the file is damaged")
    name, args, kwargs = content["operator"], content["args"], content["kwargs"]
    operator = find_operator(name)
    if type(args) not in (list, tuple) or type(kwargs) is not dict or any(type(key) is not str for key in kwargs):
        raise ValueError(f"the arguments of {name} are no list and named ones; the file is damaged")
    args, kwargs = [_argument(a, device) for a in args], {key: _argument(a, device) for key, a in kwargs.items()}
    leaves = list(_leaves([*args, *kwargs.values()]))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(leaves) > _LEAVES or sum(t.numel() * t.dtype.itemsize for t in tensors) > _OPERAND_BYTES:
        raise ValueError(f"the arguments of {name} are beyond {_OPERAND_BYTES // 2**20} MiB or {_LEAVES} in number")
    bound = _bound(operator, args, kwargs)
    reason = objection(operator, bound, _RESULT_ELEMENTS)
    if reason is not None:
        raise ValueError(f"the arguments of {name} do not fit one another: {reason}")
    call = KeptCall(name, operator, args, kwargs)
    if operator._schema.returns and name.split(".")[1] not in SIZED_BY_VALUES:
        _rehearse(call)
    return call


def _argument(value: Any, device: torch.device) -> Any:
    """An argument, or a list of such as are no lists; devices are `device`, where the tensors are.

    Raises:
        ValueError: it is something else.
    """
    if type(value) in (list, tuple, torch.Size):
        return [_leaf(item, device) for item in value]
    return _leaf(value, device)


def _leaf(value: Any, device: torch.device) -> Any:
    if type(value) is Tensor:
        # attributes of its own would stand before torch's methods
        if vars(value) or value.layout is not torch.strided or value.is_quantized or value.device.type != device.type:
            raise ValueError("a tensor of it is not a plain one")
        return value.detach()
    if type(value) is torch.device:
        return device
    if type(value) in _PLAIN or (type(value) is str and len(value) <= _TEXT) or value is torch.strided:
        return value
    raise ValueError(f"an argument is a {type(value).__name__:.40}: only tensors, numbers and lists of them are run")


def _leaves(values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _bound(operator: OpOverload, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the schema, None where they are left to their defaults."""
    names = [argument.name for argument in operator._schema.arguments]
    if len(args) > len(names) or not kwargs.keys() <= set(names[len(args) :]):
        raise ValueError(f"{operator} has no such arguments")
    return dict.fromkeys(names) | dict(zip(names, args, strict=False)) | kwargs


def _rehearse(call: KeptCall) -> None:
    """Run the call on tensors that have shapes and no memory.

    Raises:
        ValueError: it does not run, or its results would be too large.
    """
    try:
        with FakeTensorMode(allow_fallback_kernels=False) as fakes, torch.no_grad():

            def fake(value: Any) -> Any:
                if isinstance(value, list):
                    return [fake(item) for item in value]
                return fakes.from_tensor(value) if isinstance(value, Tensor) else value

            given, named = fake(call.args), {key: fake(value) for key, value in call.kwargs.items()}
            results = call.operator(*given, **named)
    except Exception as error:  # shape functions raise anything
        if isinstance(error, ZeroDivisionError) and "batch_norm" in call.name:
            return  # one value a channel, n / (n - 1); its results are as large as its input, which was looked at
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{call.name} does not take its arguments ({type(error).__name__}: {said})") from error
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    written = [*given, *named.values()]  # an `out` grows
    size = sum(value.numel() for value in _leaves([*results, *written]) if isinstance(value, Tensor))
    if size > _RESULT_ELEMENTS:
        raise ValueError(f"the results of {call.name} would have {size} elements, beyond {_RESULT_ELEMENTS}")
