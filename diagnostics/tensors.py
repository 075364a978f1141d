"""What any tensor holds: its values wherever they lie, and whether they are finite. Answers stay on the device."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc, torch.jagged)


def strided(tensor: Tensor) -> Tensor | None:
    """The strided tensor that holds the values: of a sparse tensor its values, of a DTensor its shard.

    None where there is no memory to look at: meta and lazy tensors, those of function transforms (torch.func) and of
    other layouts.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) and hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if is_lazy(tensor) or tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    if tensor.layout is torch.strided:
        return None if tensor._is_zerotensor() else tensor
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in _COMPRESSED else None


def is_inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def real(tensor: Tensor) -> Tensor:
    """Values with comparisons: complex as pairs, 8-bit floats as float32."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def bad_flags(tensors: list[Tensor]) -> list[bool]:
    """Whether each holds a NaN or Inf. One read of the host a device."""
    flags = [False] * len(tensors)
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.numel() and is_inexact(tensor):
            low, high = torch.aminmax(real(tensor.detach()))
            # inf - inf and nan - nan are nan, x - x is 0: one number tells both ends
            by_device.setdefault(tensor.device, []).append((i, ((low - low) + (high - high)).float()))
    for pairs in by_device.values():
        numbers = [float(pairs[0][1])] if len(pairs) == 1 else torch.stack([flag for _, flag in pairs]).tolist()
        for (i, _), number in zip(pairs, numbers, strict=True):
            flags[i] = number != 0.0
    return flags


def dense(tensor: Tensor) -> Tensor | None:
    """The real, strided values that this process holds of a tensor, without its graph; None where it holds none.

    Sparse: the values that are stored. Complex: real and imaginary parts, (..., 2). DTensor: the local shard.
    See `provenance.strided` for what holds nothing.
    """
    x = tensor.detach() if tensor.requires_grad else tensor
    if x.layout is torch.sparse_coo and not x.is_meta:
        x = x.coalesce()  # entries of one place are one value
    values = strided(x)
    return torch.view_as_real(values.resolve_conj()) if values is not None and values.is_complex() else values


def values_of(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """The floating and complex values that this process holds of some tensors, without their graphs."""
    found = (strided(tensor) for tensor in tensors if tensor is not None)
    return [values.detach() for values in found if values is not None and is_inexact(values) and values.numel()]


def magnitude(tensors: Sequence[Tensor]) -> Tensor:
    """Joint L2 norm, a float64 scalar on the first tensor's device; 0 of nothing. No host synchronisation.

    Finite only if every element is; may be inf where squares overflow, so that inf needs a second look.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    device = tensors[0].device
    norms = [norm.to(device, torch.float64) for group in groups.values() for norm in torch._foreach_norm(group)]
    joint: Tensor = torch.linalg.vector_norm(torch.stack([norm.real if norm.is_complex() else norm for norm in norms]))
    return joint


def any_bad(tensors: Sequence[Tensor]) -> bool:
    """Whether any element of any tensor is NaN or Inf. Exact; reads on the host."""
    return any(bad_flags(list(tensors)))


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """One boolean scalar on the device; true for no tensors. Tests elements, not sums, which can overflow.

    Integer and meta tensors count as finite. The scalar is on an accelerator where any
    tensor is on one: AdamW keeps its step counts on the CPU. No host synchronisation.
    """
    flags: list[Tensor] = []
    for tensor in tensors:
        values = dense(tensor)
        if values is not None and values.numel() and values.is_floating_point():
            wide = values.float() if values.dtype.itemsize == 1 else values
            # on the CPU ten times faster than isfinite over all elements; passes nan on
            flags.append(torch.isfinite(torch.stack(torch.aminmax(wide))).all())
    device = next((flag.device for flag in flags if flag.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([flag.to(device) for flag in flags]).all() if flags else torch.ones((), dtype=torch.bool)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every floating-point or complex tensor inside nested tuples, lists, mappings, dataclasses and model outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
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
