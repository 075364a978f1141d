"""An origin in words: phase, cause, place, samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diagnostics.tracing.advice import advice
from diagnostics.tracing.events import Event
from diagnostics.tracing.judgement import EMPTY_LOGARITHMS, Judgement
from diagnostics.tracing.origin import Origin
from diagnostics.tracing.phase import is_written_number, phase_of
from diagnostics.tracing.sinks import Sink
from diagnostics.tracing.step_batch import StepBatch
from diagnostics.tracing.step_state import StepState
from diagnostics.verdict import Verdict


@dataclass(frozen=True)
class Facts:
    """What is known of the step that an origin was found in."""

    events: Sequence[Event]
    batch: StepBatch
    state: StepState
    num_model_calls: int
    """In the whole step."""

    def describe(self, origin: Origin) -> Verdict:
        """The origin in the fields of a verdict."""
        event, path = origin.event, origin.path
        phase = phase_of(origin, self.events, self.state)
        judgement = self._judgement(event)
        if origin.discarded is not None:
            why = self._judgement(origin.discarded)
            is_nan = event.values.value == "nan"  # 0 * inf here, not the overflow there
            judgement = replace(why, exception="invalid" if is_nan else why.exception, operands=judgement.operands)
        target = self._target(event)
        samples = self._samples(target, phase)
        parameter, module, source, op = self._place_of(event, phase, origin.sink)
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
            value=event.values.value,
            witness=_witness(origin, target, judgement),
            path=_path_text(path, origin.sink),
            fix=advice(event, phase, judgement.exception, judgement.cause),
        )

    def _target(self, event: Event) -> Event:
        """The write that put a bare number into a tensor, whose rows are samples; else the event itself."""
        if not event.is_number:
            return event
        written = (self.events[number] for number in event.children)
        return next((child for child in written if child.op in ("copy_", "fill_") and child.values.whole), event)

    @staticmethod
    def _judgement(event: Event) -> Judgement:
        """Of a leaf by its kind; of an operator what recomputation said, or what its arguments suggest."""
        if event.kind in ("data", "constant"):
            return Judgement(None, "bad_scalar" if is_written_number(event) else "bad_data")
        if event.kind == "unseen":
            return Judgement(None, "unknown")
        if event.kind == "written":
            return Judgement(None, "kernel")
        if event.kind is not None:
            return Judgement(None, "bad_state")
        if event.examination.judgement is not None:
            return event.examination.judgement
        if event.op in EMPTY_LOGARITHMS:
            return Judgement("divide_by_zero", "masked_row")
        if event.ancestry.passed or event.ancestry.turned:
            return Judgement(None, "out_of_domain")
        return Judgement(None, "bad_scalar" if event.ancestry.has_infinite_scalar else "unknown")

    def _place_of(self, event: Event, phase: str, sink: Sink) -> tuple[str | None, str | None, str | None, str | None]:
        """(parameter, module, source, op) of an origin."""
        place = event.place
        source = None if place is None else place.source
        if event.kind == "written" and place is not None:
            return None, place.module, source, "fill"
        if event.kind is not None:
            module = self._module_of(event.name) if event.name and phase == "state" else None
            return event.name, module, source, None
        assert place is not None
        names = self.state.storage_names
        op = event.op.removeprefix("_foreach_").rstrip("_").removeprefix("_")
        op = "empty" if event.is_allocation else op
        parameter = next((names[s] for s in event.written.storages if s in names), None)
        if phase not in ("optimizer", "clip", "unscale", "reduce", "ema"):
            return parameter, place.module, source, op
        if parameter is None and sink.name is not None:
            name = sink.name
            parameter = name if name in self.state.parameters else name.rpartition(".")[0] or name
        module = parameter.rpartition(".")[0] if parameter is not None else place.module
        return parameter, module, source, op

    def _module_of(self, name: str) -> str:
        """Of a parameter or buffer, and of a parameter's gradient or optimizer state."""
        owner = next((p for p in (name, name.rpartition(".")[0]) if p in self.state.parameters), name)
        return owner.rpartition(".")[0]

    def _sample_ids(self, event: Event, samples: tuple[int, ...]) -> tuple[str, ...]:
        """Ids from the batch; of a sequence of micro-batches, from the one whose model call this was."""
        number = None
        if event.kind == "data" and event.name is not None and self.batch.num_micro_batches > 1:
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
        whole, rows, shapes = event.values.whole, event.values.rows, self.state.shapes
        one_a_sample = phase == "loss" and whole[:1] == (size,) and set(whole[1:]) <= {1}  # weights by t
        if not event.ancestry.from_batch and event.kind != "data" and not one_a_sample:
            return ()
        if event.kind == "data" and event.name is not None and self.batch.is_samples:
            return (int(event.name),)
        is_weight = phase == "backward" and (whole in shapes or whole[::-1] in shapes)
        first, last, length = 0, size - 1, whole[0] if whole else 0
        span = event.ancestry.span
        if span is not None and span.length and span.length % size == 0:
            first, last = (row // (span.length // size) for row in (span.first, span.last))
        num = last - first + 1
        if not is_weight and length and length % num == 0:
            return tuple(sorted({first + row // (length // num) for row in rows}))
        return tuple(range(first, last + 1)) if num < size and not is_weight else ()


def _witness(origin: Origin, target: Event, judgement: Judgement) -> dict[str, Any]:
    """What was seen, for people and for the reproduction."""
    witness: dict[str, Any] = {}
    seen, place, discarded = target.values, origin.event.place, origin.discarded
    if seen.dtype is not None:
        witness = {"index": list(seen.index), "shape": list(seen.shape)}
        witness |= {"operands": judgement.operands} if judgement.operands else {}
        witness |= _limits(seen.dtype)
    if place is not None and place.issued_at is not None:
        witness["issued_at"] = place.issued_at
    if discarded is not None and discarded.place is not None:
        witness["discarded"] = f"{discarded.values.value} of {discarded.op} at {discarded.place.source}"
    return witness


def _path_text(path: list[Event], sink: Sink) -> tuple[str, ...]:
    names: list[str] = []
    for event in path:
        name = event.op if event.kind is None else f"{event.kind} {event.name or ''}".strip()
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
