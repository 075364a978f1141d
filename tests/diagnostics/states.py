"""Everything that a step may change, bit for bit."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


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


def bits_of(state: dict[str, Any]) -> dict[str, bytes]:
    """Comparable copies; NaN equals itself."""

    def bits(value: Any) -> bytes:
        if not isinstance(value, Tensor):
            return repr(value).encode()
        values = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        return f"{values.dtype} {tuple(values.shape)} ".encode() + bytes(
            values.clone().contiguous().reshape(-1).view(torch.uint8).tolist()
        )

    return {name: bits(value) for name, value in state.items()}
