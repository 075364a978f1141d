"""What a watch guards: parameters, buffers, optimizers with their states, weight averages."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diagnostics.modules import walk
from diagnostics.tensors import all_finite, any_bad, bad_flags, tensors_in, values_of
from diagnostics.watching.snapshot import Buffers, OptimizerState

_SMALL_BUFFER = 2**22  # elements; larger buffers are tables that no step changes


class Inventory:
    """Of models and optimizers. Walking them takes a while, so `renew` is called seldom.

    Attributes:
        parameters: of models and optimizers. beside: those of the models that no optimizer has: frozen, or averages.
        buffers: copies of the models' buffers.
    """

    def __init__(self, models: list[nn.Module], optimizers: list[Any], averages: list[Tensor]) -> None:
        self._models, self.optimizers, self._averages = models, optimizers, averages
        self._meant: set[tuple[int, str]] = set()  # buffers in which infinity turned out to be no fault
        self.renew()

    def renew(self) -> None:
        modules = [module for model in self._models for _, module in walk(model)]
        found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
        own = {id(p): p for group in self._groups() for p in group["params"]}
        self.parameters: list[nn.Parameter] = [p for p in (found | own).values() if not is_lazy(p)]
        self.beside = [p for p in self.parameters if id(p) not in own] if own else []
        self._group_sizes = [len(group["params"]) for group in self._groups()]
        self.buffers = Buffers([m for m in modules if not isinstance(m, torch.jit.ScriptModule)], _SMALL_BUFFER)
        buffers = self.buffers.current()
        flags = bad_flags(list(buffers.values()))  # one read
        bad = {i for i, flag in zip(buffers, flags, strict=True) if flag}  # masks, running extremes
        self._infinite = bad | self.buffers.numbers(self._meant)
        self._undefined = {i for i in bad if bool(torch.isnan(buffers[i]).any())}

    @property
    def is_stale(self) -> bool:
        """Whether an optimizer got other parameters since."""
        return self._group_sizes != [len(group["params"]) for group in self._groups()]

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from getattr(optimizer, "param_groups", [])

    # Optimizer states

    def _state_dicts(self) -> Iterator[Mapping[str, Any]]:
        for optimizer in self.optimizers:
            states = getattr(optimizer, "state", None)
            if isinstance(states, Mapping):
                yield from (state for state in states.values() if isinstance(state, Mapping))

    def state_versions(self) -> list[tuple[int, int]]:
        # Thousands of tensors, twice a step.
        return [(id(v), v._version) for state in self._state_dicts() for v in state.values() if isinstance(v, Tensor)]

    def everything(self) -> list[Tensor]:
        """The values of parameters, states and averages."""
        states = [tensor for state in self._state_dicts() for tensor in tensors_in(state)]
        return values_of([*self.parameters, *states, *self._averages])

    def copy(self) -> OptimizerState:
        return OptimizerState(self.optimizers, self.parameters, self._averages)

    # Parameters

    def versions(self) -> dict[int, int]:
        return {id(parameter): parameter._version for parameter in self.parameters}

    def written(self, before: dict[int, int], *, own: bool) -> list[nn.Parameter]:
        """Parameters that were written to since `versions`; with `own` those of the optimizers, too."""
        listed = self.parameters if own else self.beside
        return [p for p in listed if p._version != before.get(id(p), p._version)]

    def gradients(self, optimizer: Any = None) -> list[Tensor]:
        """All of them; where there are several optimizers, those of one."""
        listed: list[Any] = self.parameters
        if len(self.optimizers) > 1:
            listed = [p for group in getattr(optimizer, "param_groups", []) for p in group["params"]] or listed
        return [parameter.grad for parameter in listed if parameter.grad is not None]

    def bad_gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Copies of those that are not finite."""
        held = [(p, p.grad) for p in self.parameters if p.grad is not None]
        if not any_bad(values_of(gradient for _, gradient in held)):  # one read
            return []
        return [(p, gradient.detach().clone()) for p, gradient in held if any_bad(values_of([gradient]))]

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    # Buffers

    def buffers_are_sound(self) -> Tensor:
        """Device flag: all are finite; where infinity is meant, none is NaN."""
        found = self.buffers.current()
        strict = all_finite(tensor for i, tensor in found.items() if i not in self._infinite)
        loose = [~torch.isnan(t).any() for i, t in found.items() if i in self._infinite - self._undefined]
        return torch.stack([strict, *(flag.to(strict.device) for flag in loose)]).all()

    def bad_buffers(self) -> dict[int, Tensor]:
        """Copies, by number, of those that are not finite; where infinity is meant, of those that are NaN."""
        found = {i: tensor.detach().clone() for i, tensor in self.buffers.current().items()}
        strict = {i: t for i, t in found.items() if i not in self._infinite and any_bad(values_of([t]))}
        loose = {i: t for i, t in found.items() if i in self._infinite - self._undefined and bool(torch.isnan(t).any())}
        return strict | loose

    def mean_infinity(self, numbers: set[int]) -> None:
        """In these buffers infinity is no fault."""
        self._meant |= {self.buffers.key(i) for i in numbers}
        self._infinite |= numbers
