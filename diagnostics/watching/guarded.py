"""What a watch guards: parameters, buffers, optimizers with their states, weight averages."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diagnostics.modules import walk
from diagnostics.tensors import any_bad, tensors_in, values_of
from diagnostics.watching.buffers import Buffers
from diagnostics.watching.snapshot import OptimizerState, bare


class Guarded:
    """Of models and optimizers. Walking them takes a while, so `renew` is called seldom."""

    buffers: Buffers
    """The models' buffers."""

    parameters: list[nn.Parameter]
    """Of models and optimizers."""

    unheld: list[nn.Parameter]
    """Those that no optimizer holds, frozen or averages; none where there is no optimizer."""

    idle: list[nn.Parameter]
    """Those that an optimizer's step leaves as they are, as far as can be foreseen: frozen, or held by no optimizer."""

    def __init__(
        self,
        models: list[nn.Module],
        optimizers: list[Any],
        averages: list[Tensor],
        safe_averages: list[Tensor],
    ) -> None:
        self.models, self.optimizers = models, optimizers
        self.averages, self.safe_averages = averages, safe_averages
        self._written: dict[int, nn.Parameter] = {}  # seen to change in a step
        self._state_versions: list[tuple[int, int]] | None = None
        self.buffers = Buffers([])
        self.renew()

    def renew(self) -> None:
        """Look again for modules, parameters and buffers."""
        modules = [module for model in self.models for _, module in walk(model)]
        self._of_models = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
        self._renew_held()
        self.buffers = Buffers([m for m in modules if not isinstance(m, torch.jit.ScriptModule)], self.buffers)

    def _renew_held(self) -> None:
        self._held = {id(p): p for group in self._groups() for p in group["params"]}
        self.parameters = [p for p in (self._of_models | self._held).values() if not is_lazy(p)]
        self.unheld = [p for p in self.parameters if id(p) not in self._held] if self._held else []
        unheld = {id(p) for p in self.unheld}
        self.idle = [p for p in self.parameters if id(p) in unheld or not p.requires_grad]
        self._trained = {id(p) for p in self.parameters if p.requires_grad}
        self._written = {id(p): p for p in self.parameters if id(p) in self._written}
        self._group_sizes = [len(group["params"]) for group in self._groups()]

    # Optimizers

    @property
    def is_stale(self) -> bool:
        """Whether an optimizer got other parameters since `renew`."""
        return self._group_sizes != [len(group["params"]) for group in self._groups()]

    def adopt(self, optimizer: Any) -> bool:
        """Guard another optimizer, if it holds a parameter of the models and is not known; whether it does."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if optimizer in self.optimizers or not held & {id(p) for p in self.parameters}:
            return False
        self.optimizers.append(optimizer)
        self._renew_held()
        return True

    def bare_optimizers(self) -> list[Any]:
        """As they can be hooked."""
        return [bare(optimizer) for optimizer in self.optimizers]

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from getattr(optimizer, "param_groups", [])

    # Optimizer states

    def _states(self) -> Iterator[tuple[Any, Any]]:
        """Key (a parameter, as a rule) and state."""
        for optimizer in self.optimizers:
            states = getattr(optimizer, "state", None)
            if isinstance(states, Mapping):
                yield from states.items()

    @property
    def is_new(self) -> bool:
        """Whether no step has ended since the watch was made or attached."""
        return self._state_versions is None

    @property
    def states_were_written(self) -> bool:
        """Whether somebody wrote to optimizer states since the last step, as a checkpoint does, or it is the first."""
        return self._state_versions is None or self._state_versions != self._versions_of_states()

    def note_end_of_step(self) -> None:
        self._state_versions = self._versions_of_states()

    def forget_steps(self) -> None:
        """The next step is the first one again."""
        self._state_versions = None

    def _versions_of_states(self) -> list[tuple[int, int]]:
        # Thousands of tensors, twice a step.
        states = [state for _, state in self._states() if isinstance(state, Mapping)]
        return [(id(v), v._version) for state in states for v in state.values() if isinstance(v, Tensor)]

    # What a step changes

    def changing(self) -> list[nn.Parameter]:
        """Parameters that a step changes as far as is known: those that optimizers hold and that train, without
        optimizers those that train, and those that a step was seen to write to. Before a step has shown what it does,
        all that train."""
        with_state = {id(key) for key, _ in self._states()}
        return [p for p in self.parameters if id(p) in self._written or self._trains(p, with_state)]

    def _trains(self, parameter: nn.Parameter, with_state: set[int]) -> bool:
        if self._held and id(parameter) not in self._held and not self.is_new:
            return False
        # A GAN's loop turns requires_grad off and on within a step.
        turned_on = parameter.requires_grad or id(parameter) in self._trained
        return turned_on or parameter.grad is not None or id(parameter) in with_state

    def learn(self, written: Collection[nn.Parameter]) -> None:
        """A step changes these parameters, too."""
        self._written |= {id(parameter): parameter for parameter in written}

    def copy(self) -> OptimizerState:
        """Of what a step changes."""
        return OptimizerState(self.optimizers, self.changing(), [*self.averages, *self.safe_averages])

    def values(self) -> list[Tensor]:
        """Floating values of parameters, states and averages, any shapes."""
        states = [tensor for _, state in self._states() for tensor in tensors_in(state)]
        return values_of([*self.parameters, *states, *self.averages, *self.safe_averages])

    def versions(self) -> dict[int, int]:
        """Id of a parameter -> a number that an operator raises when it writes to it; a write to `p.data` does not."""
        return {id(parameter): parameter._version for parameter in self.parameters}

    def unguarded(self) -> list[nn.Parameter]:
        """Idle parameters that no step was seen to write to."""
        return [p for p in self.idle if id(p) not in self._written]

    def not_trained(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of these parameters that no optimizer trains: it does not hold them, or they are frozen."""
        if not any(id(p) in self._held for p in parameters):
            return parameters
        with_state = {id(key) for key, _ in self._states()}
        return [p for p in parameters if id(p) not in self._held or not self._trains(p, with_state)]

    # Gradients

    def gradients(self, optimizer: Any = None) -> list[Tensor]:
        """All of them, each shaped as its parameter; where there are several optimizers, those of one."""
        listed: list[Any] = self.parameters
        if len(self.optimizers) > 1:
            listed = [p for group in getattr(optimizer, "param_groups", []) for p in group["params"]] or listed
        return [parameter.grad for parameter in listed if parameter.grad is not None]

    def bad_gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Copies of those that are not finite, with their parameters."""
        held = [(p, p.grad) for p in self.parameters if p.grad is not None]
        if not any_bad(values_of(gradient for _, gradient in held)):  # one read
            return []
        return [(p, gradient.detach().clone()) for p, gradient in held if any_bad(values_of([gradient]))]

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
