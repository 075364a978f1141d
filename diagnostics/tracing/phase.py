"""Which part of a step an origin lies in: one of `verdict.PHASES`."""

from collections import deque
from collections.abc import Sequence

from diagnostics.tracing.events import Event
from diagnostics.tracing.origin import Origin
from diagnostics.tracing.sinks import Sink
from diagnostics.tracing.step_context import Place
from diagnostics.tracing.step_state import StepState


def phase_of(origin: Origin, events: Sequence[Event], state: StepState) -> str:
    """The phase of an origin among all events of its step."""
    event, sink = origin.event, origin.sink
    if event.leaf is not None:
        return _phase_of_leaf(event, sink)
    place = event.place
    assert place is not None
    enters_model = _enters_model(event, events)
    if event.namespace in ("c10d", "_c10d_functional", "fsdp"):
        return "reduce"
    if place.in_optimizer and not place.in_model and (place.in_hook or not place.in_backward):
        return "optimizer"
    for mark in ("unscale", "clip", "ema", "checkpoint"):
        if mark in place.marks:
            return mark
    if place.in_backward:
        return "backward"
    if place.in_model:
        return "forward"
    if place.milestone == "model":
        return ("forward" if event.ancestry.from_model else "data") if enters_model else "loss"
    if place.milestone == "start":
        return "data" if enters_model else "loss"
    if enters_model:
        return "data"
    if "loss" in sink.kind:  # a second one, after the first one's backward
        return "loss"
    if place.milestone == "optimizer":  # pruning and normalising write to what is trained, averaging to something else
        return "optimizer" if sink.kind == "parameter" and state.is_trained(sink.name) else "ema"
    return _phase_after_backward(event, origin.path, sink, state)


def _phase_of_leaf(event: Event, sink: Sink) -> str:
    place = event.place
    if event.kind in ("data", "constant"):
        return _phase_of_number(place) if is_written_number(event) and place is not None else "data"
    if event.kind == "written" and place is not None:
        return "backward" if place.in_backward else "forward"
    if event.kind == "unseen" and place is not None and place.in_model:
        return "forward"
    if event.kind == "unseen":
        return "state" if sink.kind in ("parameter", "buffer", "optimizer state") else "data"
    return "state"


def _enters_model(event: Event, events: Sequence[Event]) -> bool:
    """Whether the model computed anything with an operator's bad values, directly or not."""
    seen, queue = {event.number}, deque([event.number])
    while queue:
        for child in events[queue.popleft()].children:
            place = events[child].place
            if place is not None and place.in_model:
                return True
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return False


def _phase_after_backward(event: Event, path: list[Event], sink: Sink, state: StepState) -> str:
    """Of a loop that unscales, clips or updates by hand, by what it writes first and what that was computed from."""
    for step in path:
        if step.place is not None and step.place.in_optimizer:
            break
        written = set(step.written.storages)
        if written & state.gradients:  # a factor that owes nothing to the gradients undoes a scale
            is_factor = step.op.removeprefix("_foreach_").strip("_") in ("mul", "div")
            return "unscale" if is_factor and not event.ancestry.from_gradient else "clip"
        if written & state.storage_names.keys():
            return "optimizer"
    return "clip" if event.ancestry.from_gradient or sink.kind == "clip norm" else "unscale"


def is_written_number(event: Event) -> bool:
    """A NaN or Inf that the code itself writes down, once the model has begun."""
    return event.is_number and event.place is not None and _phase_of_number(event.place) != "data"


def _phase_of_number(place: Place) -> str:
    if place.in_optimizer:
        return "optimizer"
    if place.in_model:
        return "forward"
    return "loss" if place.milestone == "model" else "data"
