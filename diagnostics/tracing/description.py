"""An origin in words: phase, cause, place, samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diagnostics.tensors import strided
from diagnostics.tracing.advice import advice, advice_on_left_out
from diagnostics.tracing.birth import Birth, plain
from diagnostics.tracing.events import Event
from diagnostics.tracing.judgement import EMPTY_LOGARITHMS, Judgement
from diagnostics.tracing.operand_words import added_numbers, operand_words
from diagnostics.tracing.origin import Origin
from diagnostics.tracing.phase import is_written_number, phase_of
from diagnostics.tracing.provenance import event_of, storage_key
from diagnostics.tracing.rows import Rows
from diagnostics.tracing.sinks import Sink
from diagnostics.tracing.step_batch import StepBatch
from diagnostics.tracing.step_state import StepState
from diagnostics.verdict import Verdict

_CHILDREN = 16  # operators after one that are looked at


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
        samples = Rows(self.events, self.batch, self.state.shapes).samples(target, path, phase)
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
            witness=_witness(origin, target, judgement) | operand_words(judgement, event.op, self._storage_names()),
            path=_path_text(path, origin.sink),
            fix=self._advice(origin, phase, judgement),
        )

    def _advice(self, origin: Origin, phase: str, judgement: Judgement) -> str:
        birth = self._birth(origin.event, phase, judgement)
        if origin.discarded is None:
            return advice(birth)
        left_out = self._birth(origin.discarded, "forward", self._judgement(origin.discarded))
        return advice_on_left_out(birth, left_out)

    def _birth(self, event: Event, phase: str, judgement: Judgement) -> Birth:
        is_kept = event.name is not None and event.kind in ("parameter", "buffer", "attribute")
        return Birth(
            event=event,
            phase=phase,
            judgement=judgement,
            making=event.examination.making,
            added=added_numbers(judgement),
            after=self._after(event),
            from_mask=event.leaf is None and self._comes_from_mask(event),
            from_infinity=event.leaf is None and bool(event.ancestry.turned or event.ancestry.passed),
            keeping=self.state.keeping(event.name) if is_kept and event.name is not None else None,
        )

    def _comes_from_mask(self, event: Event) -> bool:
        """Whether infinities that are meant, negative ones as masks are, came in."""
        seen: set[int] = set()
        queue = [event_of(node) for node in event.ancestry.turned | event.ancestry.passed]
        while queue:
            number = queue.pop()
            if number in seen:
                continue
            seen.add(number)
            source = self.events[number]
            if source.is_mask or (not source.ancestry.passed and source.values.value == "-inf"):
                return True
            queue += [event_of(node) for node in source.ancestry.passed]
        return False

    def _after(self, event: Event) -> frozenset[str]:
        """Plain names of the operators that its bad values went through next, three deep."""
        found: set[str] = set()
        layer = {event.number}
        for _ in range(3):
            layer = {child for number in layer for child in self.events[number].children[:_CHILDREN]}
            found |= {plain(self.events[number].op) for number in layer}
        return frozenset(found)

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
        if parameter is None and sink.name is not None and sink.kind != "failure":
            name = sink.name
            parameter = name if name in self.state.parameters else name.rpartition(".")[0] or name
        module = parameter.rpartition(".")[0] if parameter is not None else place.module
        return parameter, module, source, op

    def _storage_names(self) -> dict[int, str]:
        """What a person calls a storage: `conv.weight`, `conv.weight.grad`, `conv.weight.exp_avg`."""
        state = self.state
        named = {key: f"{name}.grad" if key in state.gradients else name for key, name in state.storage_names.items()}
        for name, tensor in (*state.optimizer_states(), *self.batch.tensors):
            values = strided(tensor)
            if values is not None:
                named.setdefault(storage_key(values), name)
        return named

    def _module_of(self, name: str) -> str | None:
        """Of a parameter or buffer, and of a parameter's gradient or optimizer state, however deep it lies in it."""
        if name.startswith("param_groups["):
            return None
        parts = name.split(".")
        owners = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        owner = next((one for one in owners if one in self.state.parameters), name)
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
