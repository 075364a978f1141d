"""What a step changes besides buffers: randomness, parameters, optimizer and scaler states, kept to be put back."""

import copy
import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.watching.copies import Copies


class Randomness:
    """State of every random number generator a step may draw from: torch on all devices, Python, NumPy if loaded, and
    those that are given."""

    def __init__(self, generators: Iterable[Any] = ()) -> None:
        """generators: torch's, NumPy's and Python's."""
        self._cpu = torch.get_rng_state()
        cuda_in_use: bool = torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if cuda_in_use else []
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None
        self._given = [(generator, _state_of(generator)) for generator in generators]

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        for generator, state in self._given:
            _put_back(generator, state)

    def tensors(self) -> dict[str, Tensor]:
        """torch's part, to be saved: `cpu`, `cuda.0`, ... -> state, (N,) uint8."""
        return {"cpu": self._cpu} | {f"cuda.{i}": state for i, state in enumerate(self._cuda)}


def _state_of(generator: Any) -> Any:
    """A copy of what a generator goes on from."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "get_state"):  # torch.Generator, numpy.random.RandomState
        return generator.get_state()
    return copy.deepcopy(_bits(generator).state)


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        _bits(generator).state = state


def _bits(generator: Any) -> Any:
    """The bit generator of a numpy.random.Generator, which may be one itself."""
    return getattr(generator, "bit_generator", generator)


class ScalerState:
    """A gradient scaler before the step."""

    scaler: torch.amp.GradScaler

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self._scale, self._growth_tracker = _copied(scaler._scale), _copied(scaler._growth_tracker)

    @property
    def scale(self) -> float:
        """The factor; 1 before the scaler has been used. Reads on the host."""
        return 1.0 if self._scale is None else float(self._scale)

    def restore(self) -> None:
        scaler = self.scaler
        scaler._scale, scaler._growth_tracker = _copied(self._scale), _copied(self._growth_tracker)
        scaler._per_optimizer_states.clear()


def _copied(scalar: Tensor | None) -> Tensor | None:
    return None if scalar is None else scalar.clone()


class OptimizerState:
    """Parameters, averages and the states of optimizers before a step, so that the step can be undone bit for bit.

    Costs one copy of them in memory and in time. States may be anything that `Copies` copies. An optimizer that keeps
    its state elsewhere than in `param_groups` and `state`, as torch's do, gets back its parameters alone.
    """

    def __init__(
        self, optimizers: Iterable[Any], parameters: Iterable[nn.Parameter], averages: Iterable[Tensor] = ()
    ) -> None:
        """Copy now.

        Args:
            optimizers: of any class. parameters: those that are copied, any shape; of what the optimizers hold, too,
                only these. averages: further tensors, any shape.
        """
        self._copies = Copies()
        for tensor in (*parameters, *averages):
            self._copies.add(tensor)
        for optimizer in optimizers:
            for one in {id(one): one for one in (optimizer, bare(optimizer))}.values():
                groups, states = getattr(one, "param_groups", None), getattr(one, "state", None)
                for group in groups if isinstance(groups, list) else []:
                    for parameter in group["params"]:
                        self._copies.leave(parameter)
                self._copies.add([groups, states])

    def holds(self, parameter: Tensor) -> bool:
        """Whether this parameter, of any shape, was copied."""
        return self._copies.holds(parameter)

    def values_of(self, parameter: Tensor) -> Tensor | None:
        """A parameter's values before the step, same shape; None of one that was not copied."""
        return self._copies.values_of(parameter)

    def restore(self) -> None:
        self._copies.restore()


def bare(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrapper, which has no hooks; any other as it is."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if callable(getattr(inner, "step", None)) else optimizer
