"""What any tensor holds: its values wherever they lie, and whether they are finite.

Any shape, dtype, layout and device, DTensors included, unless a function says otherwise.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (Tensor, torch.nn.Parameter)
_LAYOUT, _IS_META = attrgetter("layout"), attrgetter("is_meta")
_TOGETHER, _ALONE = 2**22, 2**14  # elements: tensors below the second are looked at together, up to the first
_FEW = 8  # tensors that are asked one by one
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc, torch.jagged)

# Which tensors there are


def is_inexact(tensor: Tensor) -> bool:
    """Whether a tensor of any shape is floating-point or complex, and so can hold NaN and Inf."""
    return tensor.is_floating_point() or tensor.is_complex()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every floating-point or complex tensor of any shape inside nested tuples, lists, mappings, dataclasses and model
    outputs."""
    if isinstance(value, Tensor):
        if is_inexact(value):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name, None))


def named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of any shape inside nested mappings, sequences and dataclasses, under `name` with keys, numbers and
    fields behind it (`first.weight.moments.0`); of a subclass that holds several tensors, these (`exp_avg.codes`)."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Tensor):
        if len(parts(value)) == 1:
            yield name, value
        else:
            items = inner_tensors(value).items()
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        items = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name, None)) for field in fields(value))
    for key, item in items:
        yield from named_tensors(f"{name}.{key}", item)


# Where their values lie


def inner_tensors(tensor: Tensor) -> dict[str, Tensor]:
    """Attribute -> tensor, of any shape, of a subclass that is made of others (codes and scales of an 8-bit optimizer
    state, the shard of a DTensor); none of a plain tensor."""
    if type(tensor) in _PLAIN or not is_traceable_wrapper_subclass(tensor):
        return {}
    names, _ = tensor.__tensor_flatten__()
    inner = {name: getattr(tensor, name) for name in names}
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}  # a DTensor names its mesh, too


def parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the content, as this process has it: those that a subclass is made of, of any shape and
    dtype; of any plain tensor itself."""
    if type(tensor) in _PLAIN:
        return [tensor]
    if hasattr(tensor, "trigger_wait"):  # the result of a collective that may still run
        tensor = tensor.trigger_wait()
    inner = inner_tensors(tensor)
    return [part for value in inner.values() for part in parts(value)] if inner else [tensor]


def is_rehearsal() -> bool:
    """Whether operators run on tensors without memory just now: DTensor tries each new operator that way first."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def strided(tensor: Tensor) -> Tensor | None:
    """The strided tensor that holds the values, of the same dtype: of a DTensor its shard, in the shard's shape; of
    a sparse tensor its values, (stored, ...); else the tensor itself.

    None where there is no memory to look at: meta and lazy tensors, those of function transforms (torch.func), of
    other layouts, and subclasses that hold their values as something else (codes and scales, see `parts`).
    """
    if type(tensor) not in _PLAIN:
        if hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
        elif tensor.layout is torch.strided:
            inner = parts(tensor)
            if len(inner) != 1 or inner[0].shape != tensor.shape or inner[0].dtype is not tensor.dtype:
                return None
            tensor = inner[0]
    if is_lazy(tensor) or tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    if tensor.layout is torch.strided:
        return None if tensor._is_zerotensor() else tensor
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in _COMPRESSED else None


def dense(tensor: Tensor) -> Tensor | None:
    """The real, strided values that this process holds of a tensor, without its graph; None as `strided` says.

    Sparse: the values that are stored, one for each place. Complex: real and imaginary parts, (..., 2).
    """
    x = tensor.detach() if tensor.requires_grad else tensor
    if x.layout is torch.sparse_coo and not x.is_meta:
        x = x.coalesce()  # entries of one place are one value
    values = strided(x)
    return torch.view_as_real(values.resolve_conj()) if values is not None and values.is_complex() else values


def values_of(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """The strided floating-point and complex values, of any shape, that this process holds of some tensors, without
    their graphs.

    What is None, empty, of another dtype or held elsewhere is left out. Of a subclass these are the values of its
    parts, such as scales.
    """
    held = [tensor for tensor in tensors if tensor is not None]
    if not _are_plain(held):  # of thousands of plain tensors the questions below take milliseconds
        held = [values for tensor in held for part in parts(tensor) if (values := strided(part)) is not None]
    return [
        values.detach() if values.requires_grad else values for values in held if is_inexact(values) and values.numel()
    ]


def _are_plain(tensors: Collection[Tensor]) -> bool:
    """Whether all are strided tensors of torch's own, with memory."""
    if not set(map(type, tensors)) <= {*_PLAIN} or not set(map(_LAYOUT, tensors)) <= {torch.strided}:
        return False
    without_memory = (_IS_META, torch._C._functorch.is_functorch_wrapped_tensor, Tensor._is_zerotensor)
    return not any(any(map(question, tensors)) for question in without_memory)


# Whether they are finite. All tensors here are strided, but for `all_finite`, which takes any.


def bad_flags(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each, of any shape, holds a NaN or Inf. Exact; one read on the host for each device."""
    flags = [False] * len(tensors)
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, tensor in enumerate(tensors):
        if not is_inexact(tensor) or not tensor.numel():
            continue
        numbers = _comparable(tensor.detach() if tensor.requires_grad else tensor)
        if numbers.is_cpu and _sum_is_finite(numbers):
            continue
        low, high = torch.aminmax(numbers)
        # inf - inf and nan - nan are nan, x - x is 0: one number tells both ends
        by_device.setdefault(tensor.device, []).append((i, ((low - low) + (high - high)).float()))
    for pairs in by_device.values():
        read = [float(pairs[0][1])] if len(pairs) == 1 else torch.stack([flag for _, flag in pairs]).tolist()
        for (i, _), number in zip(pairs, read, strict=True):
            flags[i] = number != 0.0
    return flags


def _sum_is_finite(numbers: Tensor) -> bool:
    """Whether the sum of some real numbers, of any shape, is finite: then each is, for an infinity or NaN stays one.
    The cheapest question where a read on the host costs nothing."""
    return math.isfinite(numbers.sum().item())


def any_bad(tensors: Sequence[Tensor]) -> bool:
    """Whether any element of any tensor, of any shape, is NaN or Inf. Exact; one read on the host for each device."""
    if len(tensors) <= _FEW:
        return any(bad_flags(tensors))
    held = [tensor.detach() for tensor in tensors if tensor.numel() and is_inexact(tensor)]
    return read_any([(low - low) + (high - high) for low, high in extremes(held)])


def read_any(numbers: Iterable[Tensor]) -> bool:
    """Whether any of these scalars is not 0, NaN among them. One read on the host for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for number in numbers:
        by_device.setdefault(number.device, []).append(number.float())
    return any(any(torch.stack(found).tolist()) for found in by_device.values())


def extremes(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Least and largest element, scalars, of groups that together are all of these strided tensors; NaN where there
    is one. Complex numbers are taken apart.

    Small tensors are copied into one: thousands of questions cost more than the elements.
    """
    groups: list[list[Tensor]] = []
    open_groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        num = tensor.numel()
        key = (tensor.device, tensor.dtype)
        group, used = open_groups.get(key, ([], _TOGETHER))
        if num > _ALONE or tensor.dtype.itemsize == 1:
            groups.append([tensor])
        elif used + num > _TOGETHER:
            groups.append([tensor])
            open_groups[key] = groups[-1], num
        else:
            group.append(tensor)
            open_groups[key] = group, used + num
    return [torch.aminmax(_comparable(_joined(group))) for group in groups]


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every element is finite: one boolean scalar on the device, true for no tensors. No read on the host.

    Tests elements, not sums, which can overflow. Integer and meta tensors count as finite. The scalar is on an
    accelerator where any tensor is on one: AdamW keeps its step counts on the CPU.
    """
    held = [dense(tensor) for tensor in tensors]
    floating = [values for values in held if values is not None and values.numel() and values.is_floating_point()]
    # on the CPU ten times faster than isfinite over all elements; passes nan on
    flags = [torch.isfinite(torch.stack(ends)).all() for ends in extremes(floating)]
    device = next((flag.device for flag in flags if flag.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([flag.to(device) for flag in flags]).all() if flags else torch.ones((), dtype=torch.bool)


def magnitude(tensors: Sequence[Tensor]) -> Tensor:
    """Joint L2 norm, a float64 scalar on the first tensor's device; 0 for no tensors. Reads nothing on the host.

    Finite only if every element is; may be inf where squares overflow, so that inf needs a second look.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    device = tensors[0].device
    found = [torch.stack(torch._foreach_norm([wide(tensor) for tensor in group])) for group in groups.values()]
    reals = [(norms.real if norms.is_complex() else norms).to(device, torch.float64) for norms in found]
    joint: Tensor = torch.linalg.vector_norm(torch.cat(reals))
    return joint


def wide(tensor: Tensor) -> Tensor:
    """8-bit floats as float32, which has comparisons and norms, same shape; any other tensor as it is."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _comparable(tensor: Tensor) -> Tensor:
    """Values that have an order: complex ones as pairs, (..., 2), 8-bit floats as float32."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else wide(tensor)
