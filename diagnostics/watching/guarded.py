"""What a watch guards: parameters, buffers, optimizers with their states, weight averages."""

from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diagnostics.modules import walk, withheld_gradients
from diagnostics.tensors import tensors_in, values_of
from diagnostics.watching.buffers import Buffers
from diagnostics.watching.safety import warn_of_eps
from diagnostics.watching.snapshot import OptimizerState, bare
from diagnostics.watching.state_versions import StateVersions

_VERSION = attrgetter("_version")


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

    written: list[nn.Parameter]
    """Idle parameters that a step was seen to write to."""

    steps_outside: bool
    """Whether parameters that train were written to between the last step, which left them alone, and this one."""

    is_in_doubt: bool
    """Whether gradients were so large that a step outside may have spoilt the optimizer's states."""

    others: list[nn.Parameter]
    """These, and idle ones of a single element, in which a step may count."""

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
        self._state_versions = StateVersions()
        self._last_versions: dict[int, int] | None = None  # when a step ended in which no optimizer stepped
        self._warned: set[tuple[int, str]] = set()
        self.steps_outside = self.is_in_doubt = False
        self.buffers = Buffers([])
        self.renew()

    def renew(self) -> None:
        """Look again for modules, parameters and buffers."""
        modules = [module for model in self.models for _, module in walk(model)]
        self._withheld = withheld_gradients(self.models)
        self._of_models = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
        self._renew_held()
        self._with_buffers = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
        self.buffers = Buffers(self._with_buffers, self.buffers)

    def _renew_held(self) -> None:
        self._held = {id(p): p for group in self._groups() for p in group["params"]}
        self.parameters = [p for p in (self._of_models | self._held).values() if not is_lazy(p)]
        self._ids = list(map(id, self.parameters))
        self.unheld = [p for p in self.parameters if id(p) not in self._held] if self._held else []
        unheld = {id(p) for p in self.unheld}
        self.idle = [p for p in self.parameters if id(p) in unheld or not p.requires_grad]
        self._trained = {id(p) for p in self.parameters if p.requires_grad}
        self._written = {id(p): p for p in self.parameters if id(p) in self._written}
        self._renew_others()
        self._group_sizes = [len(group["params"]) for group in self._groups()]
        for optimizer in self.optimizers:
            warn_of_eps(optimizer, self._warned)

    def all_buffers(self) -> list[dict[str, Tensor | None]]:
        """The modules' own dictionaries of buffers of any shape, large tables too."""
        return [module._buffers for module in self._with_buffers]

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

    # Optimizers that step outside of what is watched

    def note_versions(self, versions: dict[int, int], *, has_stepped: bool) -> None:
        """A step has ended, with these `versions` of the parameters; `has_stepped`: an optimizer has, in it."""
        self._last_versions = None if has_stepped else versions

    def note_begin(self, versions: dict[int, int]) -> None:
        """A step begins. What was written to parameters that train since the last one was written outside."""
        last = self._last_versions
        self.steps_outside = last is not None and any(
            versions[id(p)] != last.get(id(p), versions[id(p)]) for p in self.parameters if id(p) in self._trained
        )

    # Optimizer states

    def _states(self) -> Iterator[tuple[Any, Any]]:
        """Key (a parameter, as a rule) and state."""
        for states in self._mappings():
            yield from states.items()

    def _mappings(self) -> Iterator[Mapping[Any, Any]]:
        """States of each optimizer."""
        for optimizer in self.optimizers:
            states = getattr(optimizer, "state", None)
            if isinstance(states, Mapping):
                yield states

    @property
    def is_new(self) -> bool:
        """Whether no step has ended since the watch was made or attached."""
        return self._state_versions.is_new

    def states_were_written(self) -> bool:
        """At the beginning of each step, once: whether somebody wrote to optimizer states since the last step, as a
        checkpoint does, or it is the first."""
        return self._state_versions.were_written(self._mappings())

    def note_end_of_step(self, num_stepped: int) -> None:
        """A step has ended well, in which optimizers stepped so often."""
        self._state_versions.note_end(self._mappings(), num_stepped)

    def forget_steps(self) -> None:
        """The next step is the first one again."""
        self._state_versions.forget()
        self._last_versions = None

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
        new = {id(parameter): parameter for parameter in written if id(parameter) not in self._written}
        if new:
            self._written |= new
            self._renew_others()

    def _renew_others(self) -> None:
        idle = {id(p) for p in self.idle}
        self.written = [p for p in self._written.values() if id(p) in idle]
        # A single number that is held as a parameter counts something, often by `.data`, which shows in no version.
        counters = [p for p in self.idle if p.numel() == 1 and id(p) not in self._written]
        self.others = [*self.written, *counters]

    def copy(self, *, others: bool = True) -> OptimizerState:
        """Of what a step changes; `others`: with what it writes to other than by an optimizer."""
        changing, left = self.changing(), set() if others else {id(p) for p in self.others}
        averages = [*self.averages, *self.safe_averages]
        return OptimizerState(self.optimizers, [p for p in changing if id(p) not in left], averages)

    def fits_copy(self) -> bool:
        """Whether accelerators have room for a copy of what a step changes, and half as much again."""
        needed: dict[torch.device, int] = {}
        states = (tensor for _, state in self._states() for tensor in tensors_in(state))
        for tensor in values_of([*self.changing(), *states, *self.averages, *self.safe_averages]):
            if tensor.is_cuda:
                needed[tensor.device] = needed.get(tensor.device, 0) + tensor.numel() * tensor.dtype.itemsize
        return all(1.5 * num_bytes <= _free(device) for device, num_bytes in needed.items())

    def values(self) -> list[Tensor]:
        """Floating values of parameters, states and averages, any shapes."""
        states = [tensor for _, state in self._states() for tensor in tensors_in(state)]
        return values_of([*self.parameters, *states, *self.averages, *self.safe_averages])

    def versions(self) -> dict[int, int]:
        """Id of a parameter -> a number that an operator raises when it writes to it; a write to `p.data` does not."""
        return dict(zip(self._ids, map(_VERSION, self.parameters), strict=True))

    def written_since(self, versions: dict[int, int], among: list[nn.Parameter] | None = None) -> list[nn.Parameter]:
        """Parameters that operators wrote to since `versions` were noted."""
        if among is None and versions == self.versions():  # as a rule
            return []
        listed = self.parameters if among is None else among
        return [p for p in listed if p._version != versions.get(id(p), p._version)]

    def unguarded(self) -> list[nn.Parameter]:
        """Idle parameters that no step was seen to write to."""
        return [p for p in self.idle if id(p) not in self._written]

    def trained(self) -> list[nn.Parameter]:
        """Parameters that an optimizer holds and trains."""
        idle = {id(p) for p in self.idle}
        return [p for p in self.parameters if id(p) in self._held and id(p) not in idle]

    def are_counters(self, parameters: Collection[nn.Parameter]) -> bool:
        """Whether these are nothing next to what a copy of all that a step changes would take: single numbers, or at
        most a hundredth of it."""
        num = sum(p.numel() for p in parameters)
        return all(p.numel() == 1 for p in parameters) or 100 * num <= sum(p.numel() for p in self.changing())

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
        else:
            listed = self.with_gradients()
        return [gradient for holder in listed if (gradient := holder.grad) is not None]

    def with_gradients(self) -> list[Any]:
        """What has a `grad`: parameters, and what FSDP2 keeps to itself."""
        return [*self.parameters, *self._withheld] if self._withheld else self.parameters


def _free(device: torch.device) -> int:
    """Bytes that a CUDA device has left for this process, with what the allocator keeps for it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
