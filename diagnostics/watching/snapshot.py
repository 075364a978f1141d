"""What a step may change, kept so that the step can be repeated or undone."""

import random
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_ALWAYS_COPIED = 2**16


class Randomness:
    """State of every random number generator a step may draw from: torch on all devices, Python, NumPy if loaded."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)

    def tensors(self) -> dict[str, Tensor]:
        """torch's part, to be saved."""
        return {"cpu": self._cpu} | {f"cuda.{i}": state for i, state in enumerate(self._cuda)}


class Buffers:
    """Copies of modules' buffers, which a step writes in place or replaces. Undone, a step leaves neither.

    A copy is renewed only where its tensor changed. Buffers above `max_elements` are tables that no step changes;
    they are not copied.
    """

    def __init__(self, modules: Iterable[nn.Module], max_elements: int) -> None:
        self._slots = [(module._buffers, name) for module in modules for name in module._buffers]
        self._max_elements = max_elements
        self._kept: list[tuple[Tensor | None, int, Tensor | None]] = [(None, 0, None)] * len(self._slots)

    def current(self) -> dict[int, Tensor]:
        """Number of its place -> buffer, of those that may change."""
        found = {i: holder.get(name) for i, (holder, name) in enumerate(self._slots)}
        return {i: tensor for i, tensor in found.items() if tensor is not None and tensor.numel() <= self._max_elements}

    def versions(self) -> list[tuple[int, int]]:
        """Equal for as long as no operator wrote to a buffer or put another in its place."""
        return [(id(tensor), tensor._version) for tensor in self.current().values()]

    def key(self, number: int) -> tuple[int, str]:
        """Of a buffer's place, as long as its module lives."""
        holder, name = self._slots[number]
        return id(holder), name

    def numbers(self, keys: set[tuple[int, str]]) -> set[int]:
        return {i for i in range(len(self._slots)) if self.key(i) in keys}

    def take(self) -> None:
        """Make the copies those of now."""
        now = self.current()
        for i, (holder, name) in enumerate(self._slots):
            tensor, (old, version, _) = now.get(i), self._kept[i]
            if tensor is None:
                self._kept[i] = (holder.get(name), 0, None)
            # Kernels of batch normalisation write without a trace in the version.
            elif tensor is not old or tensor._version != version or tensor.numel() <= _ALWAYS_COPIED:
                self._kept[i] = (tensor, tensor._version, tensor.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        for i, ((holder, name), (tensor, version, copy)) in enumerate(zip(self._slots, self._kept, strict=True)):
            if name in holder and holder[name] is not tensor:
                holder[name] = tensor
            if (
                copy is not None
                and tensor is not None
                and (tensor._version != version or tensor.numel() <= _ALWAYS_COPIED)
            ):
                tensor.detach().copy_(copy)
                self._kept[i] = (tensor, tensor._version, copy)


class OptimizerState:
    """Parameters, averages and the states of optimizers before a step, so that the step can be undone bit for bit.

    Costs one copy of parameters and states in memory and in time. An optimizer that keeps its state elsewhere than in
    `param_groups` and `state`, as torch's do, gets back its parameters alone.
    """

    def __init__(
        self, optimizers: Iterable[Any], parameters: Iterable[nn.Parameter], averages: Iterable[Tensor] = ()
    ) -> None:
        optimizers = [getattr(one, "optimizer", one) for one in optimizers]  # accelerate's wrapper
        self._groups = [
            (group, {key: _copied(value) for key, value in group.items() if key != "params"})
            for optimizer in optimizers
            for group in getattr(optimizer, "param_groups", [])
        ]
        listed = {id(tensor): tensor for tensor in [*parameters, *averages]}
        listed |= {id(p): p for group, _ in self._groups for p in group["params"]}
        self._parameters = [(p, p.detach().clone()) for p in listed.values()]
        self._states = [
            (
                optimizer.state,
                {p: {key: _copied(value) for key, value in s.items()} for p, s in optimizer.state.items()},
            )
            for optimizer in optimizers
            if isinstance(getattr(optimizer, "state", None), Mapping)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, copy in self._parameters:
            if parameter.dtype is copy.dtype:
                parameter.detach().copy_(copy)
            else:  # `model.half()` in the step
                parameter.data = copy.clone()
        for group, values in self._groups:
            group.update({key: _copied(value) for key, value in values.items()})
        for state, kept in self._states:
            for parameter in [p for p in state if p not in kept]:
                del state[parameter]
            for parameter, values in kept.items():
                _put_back(state[parameter], values)


def _put_back(current: dict[str, Any], values: dict[str, Any]) -> None:
    for key in [key for key in current if key not in values]:
        del current[key]
    for key, value in values.items():
        if isinstance(value, Tensor) and isinstance(current.get(key), Tensor):
            current[key].copy_(value)  # in place: the step may have handed this tensor out
        else:
            current[key] = _copied(value)


def _copied(value: Any) -> Any:
    """A deep copy, of tensors without their graphs."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value
