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


class Tensors:
    """Copies of tensors that are written in place, renewed only where a tensor changed since its last copy."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, int, Tensor]] = {}

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Make the copies those of now. Forgets tensors that are no longer listed."""
        copies = {}
        for tensor in tensors:
            old = self._copies.get(id(tensor))
            is_small = tensor.numel() <= _ALWAYS_COPIED  # kernels of batch normalisation write without a trace
            if old is not None and old[0] is tensor and old[1] == tensor._version and not is_small:
                copies[id(tensor)] = old
            else:
                copies[id(tensor)] = (tensor, tensor._version, tensor.detach().clone())
        self._copies = copies

    @torch.no_grad()
    def restore(self) -> None:
        for key, (tensor, version, copy) in self._copies.items():
            if tensor._version != version or tensor.numel() <= _ALWAYS_COPIED:
                tensor.detach().copy_(copy)
                self._copies[key] = (tensor, tensor._version, copy)

    def __len__(self) -> int:
        return len(self._copies)


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
            parameter.detach().copy_(copy)
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
    return value.detach().clone() if isinstance(value, Tensor) else value
