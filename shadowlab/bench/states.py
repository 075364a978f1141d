"""Everything that a step may change, bit for bit."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def state_of(models: Iterable[nn.Module], optimizer: Any = None, *, gradients: bool = False) -> dict[str, Any]:
    """Parameters, buffers, optimizer states and groups, by name; with `gradients` those, too."""
    found: dict[str, Any] = {}
    for i, model in enumerate(models):
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            found[f"{i}.{name}"] = tensor
            if gradients:
                found[f"{i}.{name}.grad"] = tensor.grad
    for i, state in enumerate(getattr(optimizer, "state", {}).values()):
        found |= {f"state {i}.{key}": value for key, value in state.items()}
    for i, group in enumerate(getattr(optimizer, "param_groups", [])):
        found |= {f"group {i}.{key}": value for key, value in group.items() if key != "params"}
    return found


def bits_of(state: Mapping[str, Any]) -> dict[str, bytes]:
    """Comparable copies; NaN equals itself."""
    return {name: _bits(value) for name, value in state.items()}


def _bits(value: Any) -> bytes:
    if isinstance(value, Mapping):
        return b"{" + b", ".join(repr(key).encode() + b": " + _bits(item) for key, item in value.items()) + b"}"
    if isinstance(value, (list, tuple, deque)):
        return type(value).__name__.encode() + b"[" + b", ".join(map(_bits, value)) + b"]"
    if is_dataclass(value):
        return _bits({field.name: getattr(value, field.name) for field in fields(value)})
    if not isinstance(value, Tensor):
        return repr(value).encode()
    if hasattr(value, "to_local"):
        return _bits(value.to_local())  # of a DTensor its shard
    if is_traceable_wrapper_subclass(value):
        inner = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        return type(value).__name__.encode() + b"(" + b", ".join(map(_bits, inner)) + b")"
    plain = value.detach()
    values = plain.to_dense() if plain.layout is not torch.strided else plain
    content = values.clone().contiguous().reshape(-1).view(torch.uint8).tolist()
    return f"{values.dtype} {tuple(values.shape)} ".encode() + bytes(content)
