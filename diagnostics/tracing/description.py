"""An origin in words: phase, cause, place, samples."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diagnostics.tracing.advice import advice
from diagnostics.tracing.events import Event
from diagnostics.tracing.judgement import EMPTY_LOGARITHMS, Judgement
from diagnostics.tracing.origin import Origin, Sink
from diagnostics.tracing.step_batch import StepBatch
from diagnostics.tracing.step_context import Place
from diagnostics.verdict import Verdict


@dataclass(frozen=True)
class Facts:
    """What is known of the step that an origin was found in.

    names: of parameters, buffers and gradients, by storage. gradients: storages of gradients. shapes: of parameters.
    num_model_calls: in the whole step.
    """

    events: Sequence[Event]
    batch: StepBatch
    names: dict[int, str]
    gradients: set[int]
    parameter_names: set[str]
    shapes: set[tuple[int, ...]]
    num_model_calls: int

    def describe(self, origin: Origin) -> Verdict:
        """The origin in the fields of a verdict."""
        event, path = origin.event, origin.path
        phase = self._phase(event, path, origin.sink)
        judgement = self._judgement(event)
        if origin.discarded is not None:
            why = self._judgement(origin.discarded)
            exception = "invalid" if event.value == "nan" else why.exception  # 0 * inf here, not the overflow there
            judgement = replace(why, exception=exception, operands=judgement.operands)
        target = self._target(event)
        samples = self._samples(target, phase)
        parameter, module, source, op = self._place_of(event, phase, origin.sink)
        witness: dict[str, Any] = {}
        if target.dtype is not None:
            witness = {"index": list(target.index), "shape": list(target.shape)}
            witness |= {"operands": judgement.operands} if judgement.operands else {}
            witness |= _limits(target.dtype)
        if event.place is not None and event.place.issued_at is not None:
            witness["issued_at"] = event.place.issued_at
        if origin.discarded is not None and origin.discarded.place is not None:
            witness["discarded"] = (
                f"{origin.discarded.value} of {origin.discarded.op} at {origin.discarded.place.source}"
            )
        return Verdict(
            phase=phase,
            exception=judgement.exception,
            cause=judgement.cause,
            op=op,
            module=module,
            parameter=parameter,
            source=source,
            samples=samples,
            sample_ids=self._sample_ids(event, samples),
            value=event.value,
            witness=witness,
            path=_path_text(path, origin.sink),
            fix=advice(event, phase, judgement.exception, judgement.cause),
        )

    def _target(self, event: Event) -> Event:
        """The write that put a bare number into a tensor, whose rows are samples; else the event itself."""
        if not event.is_number:
            return event
        written = (self.events[number] for number in event.children)
        return next((child for child in written if child.op in ("copy_", "fill_") and child.whole), event)

    @staticmethod
    def _judgement(event: Event) -> Judgement:
        if event.leaf in ("data", "constant"):
            return Judgement(None, "bad_scalar" if _is_written_number(event) else "bad_data")
        if event.leaf == "unseen":
            return Judgement(None, "unknown")
        if event.leaf == "written":
            return Judgement(None, "kernel")
        if event.leaf is not None:
            return Judgement(None, "bad_state")
        if event.judgement is not None:
            return event.judgement
        if event.op in EMPTY_LOGARITHMS:
            return Judgement("divide_by_zero", "masked_row")
        if event.passed or event.turned:
            return Judgement(None, "out_of_domain")
        return Judgement(None, "bad_scalar" if event.has_infinite_scalar else "unknown")

    def _place_of(self, event: Event, phase: str, sink: Sink) -> tuple[str | None, str | None, str | None, str | None]:
        """(parameter, module, source, op) of an origin."""
        place = event.place
        source = None if place is None else place.source
        if event.leaf == "written" and place is not None:
            return None, place.module, source, "fill"
        if event.leaf is not None:
            module = self._module_of(event.name) if event.name and phase == "state" else None
            return event.name, module, source, None
        assert place is not None
        op = event.op.removeprefix("_foreach_").rstrip("_").removeprefix("_")
        op = "empty" if event.is_allocation else op
        parameter = next((self.names[s] for s in event.written if s in self.names), None)
        if phase not in ("optimizer", "clip", "unscale", "reduce", "ema"):
            return parameter, place.module, source, op
        if parameter is None and sink.name is not None:
            name = sink.name
            parameter = name if name in self.parameter_names else name.rpartition(".")[0] or name
        module = parameter.rpartition(".")[0] if parameter is not None else place.module
        return parameter, module, source, op

    def _module_of(self, name: str) -> str:
        """Of a parameter or buffer, and of a parameter's gradient or optimizer state."""
        owner = next((p for p in (name, name.rpartition(".")[0]) if p in self.parameter_names), name)
        return owner.rpartition(".")[0]

    def _phase(self, event: Event, path: list[Event], sink: Sink) -> str:
        if event.leaf in ("data", "constant"):
            return _phase_of_number(event.place) if _is_written_number(event) and event.place else "data"
        if event.leaf == "written" and event.place is not None:
            return "backward" if event.place.in_backward else "forward"
        if event.leaf == "unseen" and event.place is not None and event.place.in_model:
            return "forward"
        if event.leaf == "unseen":
            return "state" if sink.kind in ("parameter", "buffer", "optimizer state") else "data"
        if event.leaf is not None:
            return "state"
        place = event.place
        assert place is not None
        enters_model = self._enters_model(event)
        if event.namespace in ("c10d", "_c10d_functional", "fsdp"):
            return "reduce"
        if place.in_optimizer and not place.in_model and not place.in_backward:
            return "optimizer"
        for mark in ("unscale", "clip", "ema", "checkpoint"):
            if mark in place.marks:
                return mark
        if place.in_backward:
            return "backward"
        if place.in_model:
            return "forward"
        if place.milestone == "model":
            return ("forward" if event.from_model else "data") if enters_model else "loss"
        if place.milestone == "start":
            return "data" if enters_model else "loss"
        if enters_model:
            return "data"
        if "loss" in sink.kind:  # a second one, after the first one's backward
            return "loss"
        if place.milestone == "optimizer":
            return "ema"
        return self._phase_after_backward(event, path, sink)

    def _enters_model(self, event: Event) -> bool:
        """Whether the model computed anything with an operator's bad values, directly or not."""
        seen, queue = {event.number}, deque([event.number])
        while queue:
            for child in self.events[queue.popleft()].children:
                place = self.events[child].place
                if place is not None and place.in_model:
                    return True
                if child not in seen:
                    seen.add(child)
                    queue.append(child)
        return False

    def _phase_after_backward(self, event: Event, path: list[Event], sink: Sink) -> str:
        """A loop that unscales, clips or updates by hand: told by what it writes first, and of what it is made."""
        for step in path:
            if step.place is not None and step.place.in_optimizer:
                break
            written = set(step.written)
            if written & self.gradients:  # a factor that owes nothing to the gradients undoes a scale
                is_factor = step.op.removeprefix("_foreach_").strip("_") in ("mul", "div")
                return "unscale" if is_factor and not event.from_gradient else "clip"
            if written & self.names.keys():
                return "optimizer"
        return "clip" if event.from_gradient or sink.kind == "clip norm" else "unscale"

    def _sample_ids(self, event: Event, samples: tuple[int, ...]) -> tuple[str, ...]:
        """Ids from the batch; of a sequence of micro-batches, from the one whose model call this was."""
        number = None
        if event.leaf is not None and event.name is not None and self.batch.num_micro_batches > 1:
            number = int(event.name.partition(".")[0])
        elif event.place is not None and self.num_model_calls == self.batch.num_micro_batches:
            number = event.place.num_model_calls - 1
        ids = self.batch.ids(number)
        return tuple(ids[i] for i in samples if i < len(ids))

    def _samples(self, event: Event, phase: str) -> tuple[int, ...]:
        """Rows along the batch dimension, also where it is merged with others behind it, as (B heads, N, D).

        Of what was computed from some rows alone, as in a loop over samples, at most those.
        """
        size = self.batch.size
        if size is None or phase not in ("data", "forward", "loss", "backward"):
            return ()
        one_a_sample = phase == "loss" and event.whole[:1] == (size,) and set(event.whole[1:]) <= {1}  # weights by t
        if not event.from_batch and event.leaf != "data" and not one_a_sample:
            return ()
        if event.leaf == "data" and event.name is not None and self.batch.is_samples:
            return (int(event.name),)
        is_weight = phase == "backward" and (event.whole in self.shapes or event.whole[::-1] in self.shapes)
        first, last, length = 0, size - 1, event.whole[0] if event.whole else 0
        span = event.span
        if span is not None and span.length and span.length % size == 0:
            first, last = (row // (span.length // size) for row in (span.first, span.last))
        num = last - first + 1
        if not is_weight and length and length % num == 0:
            return tuple(sorted({first + row // (length // num) for row in event.rows}))
        return tuple(range(first, last + 1)) if num < size and not is_weight else ()


def _is_written_number(event: Event) -> bool:
    """A NaN or Inf that the code itself writes down, once the model has begun."""
    return event.is_number and event.place is not None and _phase_of_number(event.place) != "data"


def _phase_of_number(place: Place) -> str:
    if place.in_optimizer:
        return "optimizer"
    if place.in_model:
        return "forward"
    return "loss" if place.milestone == "model" else "data"


def _path_text(path: list[Event], sink: Sink) -> tuple[str, ...]:
    names: list[str] = []
    for event in path:
        name = event.op if event.leaf is None else f"{event.leaf} {event.name or ''}".strip()
        if not names or names[-1] != name:
            names.append(name)
    if len(names) > 12:
        names = [*names[:6], f"({len(names) - 11} more)", *names[-5:]]
    return (*names, f"{sink.kind} {sink.name}" if sink.name else sink.kind)


def _limits(dtype: torch.dtype) -> dict[str, Any]:
    if not dtype.is_floating_point:
        return {"dtype": str(dtype).removeprefix("torch.")}
    info = torch.finfo(dtype)
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "limits": {"max": info.max, "smallest_normal": info.smallest_normal, "eps": info.eps}}
