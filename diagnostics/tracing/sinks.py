"""The places where a non-finite value does harm: a loss, a gradient, a parameter, a state, an average."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from diagnostics.tensors import bad_flags, is_inexact, strided, tensors_in
from diagnostics.tracing.events import Event
from diagnostics.tracing.provenance import harmful, is_legitimate, nodes_in
from diagnostics.tracing.step_state import StepState
from diagnostics.tracing.tracer import Tracer

SinkKind = Literal[
    "loss",
    "scaled loss",
    "gradient",
    "parameter",
    "buffer",
    "optimizer state",
    "clip norm",
    "average",
    "failure",
]

# Operators that choose elements: what they leave out, nobody computed with.
SELECTIONS = {"where", "masked_fill", "masked_fill_", "masked_select", "index", "index_select", "gather", "take"}
_CHOICES = SELECTIONS | {"nan_to_num"}


@dataclass
class Sink:
    """A place where a non-finite value does harm."""

    kind: SinkKind
    name: str | None
    nodes: set[int]
    """What wrote its bad values, see `provenance`."""


class Sinks:
    """All sinks of a step that were found so far, in `found`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.found: list[Sink] = []

    def add(self, kind: SinkKind, name: str | None, tensor: Tensor) -> None:
        """A tensor of any shape and layout; it is a sink if it holds a NaN or Inf."""
        values = strided(tensor)
        if values is None or not is_inexact(values) or not bad_flags([values])[0]:
            return
        nodes = nodes_in([self._tracer.memory.shadow(values)])
        self.found.append(Sink(kind, name, nodes or {harmful(self._tracer.add_unseen(name).number)}))

    def add_failure(self, failure: BaseException) -> None:
        """An exception that ended the step, if harmful values were there that nobody had left out: those of the last
        operator, or of a leaf that was looked at."""
        events = self._tracer.events
        left_out = [False] * len(events)
        for event in reversed(events[1:]):  # children first
            is_read = bool(event.absorbers or event.children)
            chosen = set(event.absorbers) <= _CHOICES and all(left_out[child] for child in event.children)
            left_out[event.number] = (is_read or event.leaf is not None) and chosen
        bad = [event for event in events[1:] if event.is_harmful and not left_out[event.number]]
        last = max(bad, key=lambda event: (event.leaf is None, event.number), default=None)
        if last is not None:
            self.found.append(Sink("failure", type(failure).__name__, {harmful(last.number)}))

    def collect(self, result: Any, state: StepState) -> None:
        """Look at everything that the step left: what it returned and what it trains."""
        self._add_losses(result)
        for name, parameter in state.parameters.items():
            if parameter.grad is not None:
                self.add("gradient", name, parameter.grad)
            self.add("parameter", name, parameter)
        for name, gradient in state.withheld_gradients():
            self.add("gradient", name, gradient)
        before = len(self.found)
        for name, tensor in state.buffers():
            self.add("buffer", name, tensor)
        for name, tensor in state.optimizer_states():
            self.add("optimizer state", name, tensor)
        for sink in self.found[before:]:  # infinity may be meant there
            sink.nodes = {node for node in sink.nodes if not is_legitimate(node)}
        self._add_norms_and_averages(state.shapes)
        self.found.sort(key=lambda sink: "loss" not in sink.kind)  # paths to the loss are the easiest to read

    def _add_losses(self, result: Any) -> None:
        for tensor in tensors_in(result):
            if tensor.numel() == 1 or tensor is result:
                self.add("loss", None, tensor)
        for number in _numbers_in(result):
            read = [nodes for value, nodes in self._tracer.bad_reads if value == str(number)]
            if read:
                self.found.append(Sink("loss", None, set(read[-1])))

    def _add_norms_and_averages(self, shapes: set[tuple[int, ...]]) -> None:
        for event in self._tracer.events[1:]:
            if self._is_clip_norm(event):
                self.found.append(Sink("clip norm", None, {harmful(event.number)}))
            elif self._is_average(event, shapes):
                self.found.append(Sink("average", None, {harmful(event.number)}))

    @staticmethod
    def _is_clip_norm(event: Event) -> bool:
        place = event.place
        if place is None or event.leaf is not None or event.values.shape != ():
            return False
        if place.in_backward or place.in_optimizer or place.in_model:
            return False
        by_hand = event.ancestry.from_gradient and event.scales_gradients and "scaler" not in place.marks
        return "clip" in place.marks or by_hand

    def _is_average(self, event: Event, shapes: set[tuple[int, ...]]) -> bool:
        place, written = event.place, event.written
        if place is None or event.leaf is not None or place.in_backward or place.in_optimizer or place.in_model:
            return False
        if not self._any_alive(written.storages):
            return False
        succeeds = written.updates_old or not self._all_alive(written.replaces)
        return "ema" in place.marks or (place.milestone == "optimizer" and event.values.shape in shapes and succeeds)

    def _any_alive(self, storages: Iterable[int]) -> bool:
        return any(self._tracer.memory.is_alive(storage) for storage in storages)

    def _all_alive(self, storages: Iterable[int]) -> bool:
        return all(self._tracer.memory.is_alive(storage) for storage in storages)


def _numbers_in(value: Any) -> Iterator[float]:
    """NaN and Inf among the numbers in nested containers."""
    if isinstance(value, float) and not math.isfinite(value):  # NumPy's float64 is one
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers_in(item)
