"""Every operator of a step, seen once: which outputs are not finite, and which earlier operators made them so."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics.tensors import bad_flags, is_inexact, strided, wide
from diagnostics.tracing.arguments import Arguments, read_and_written, results_of
from diagnostics.tracing.bad_values import UNSEEN, BadValues, look_at, value_name
from diagnostics.tracing.calls import OperatorCall
from diagnostics.tracing.events import Event, Leaf, LeafKind
from diagnostics.tracing.examination import Examiner
from diagnostics.tracing.garbage import RareCollection
from diagnostics.tracing.lineage import Lineage
from diagnostics.tracing.nested import own_attributes, strided_leaves
from diagnostics.tracing.operators import Operator, is_arithmetic, operator, wait_for
from diagnostics.tracing.provenance import (
    Memory,
    Shadow,
    Storage,
    event_of,
    harmful,
    is_legitimate,
    legitimate,
    nodes_in,
    storage_key,
)
from diagnostics.tracing.recomputation import Recorder
from diagnostics.tracing.spread import Dispatch, Spread, spread_of
from diagnostics.tracing.step_context import Place, StepContext

_get_mode, _FAKE = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey.FAKE


class Tracer(TorchDispatchMode):
    """Runs every operator as it is and keeps the provenance of what is not finite.

    Attributes:
        memory: what is known of each storage.
        events: operators and leaves with bad values, in the order of time, after a placeholder: node 0 means finite.
        bad_reads: (value as text, its nodes) of what the host read.
        first_harm: number of the first event with harmful values, leaves included.
        is_finished: the origin is known: the rest of the step runs as it is.
        generators: of random numbers, that operators were given; by id.
    """

    def __init__(self, context: StepContext) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self.memory = Memory()
        self.events: list[Event] = [Event(0, "", None)]
        self.bad_reads: list[tuple[str, frozenset[int]]] = []
        self.first_harm: int | None = None
        self.is_finished = False
        self.generators: dict[int, torch.Generator] = {}
        self._recorder = Recorder(self.memory)
        self._examiner = Examiner(self._recorder)
        self._lineage = Lineage(self.memory)
        self._operators: dict[int, tuple[Operator, OpOverload]] = {}  # by id, which is held: a hash takes long

    def add_leaf(
        self,
        kind: LeafKind,
        name: str | None,
        tensor: Tensor,
        *,
        infinity_is_harm: bool,
        is_number: bool = False,
        is_met: bool = False,
    ) -> None:
        """Make a tensor's non-finite elements, if it has any, the origin of what is computed from them.

        Args:
            tensor: any shape and layout.
            infinity_is_harm: whether an infinite element does harm as a NaN does, rather than being a mask.
            is_number: see `events.Leaf`.
            is_met: the operator that is being dispatched meets it first; else it was there before the step.
        """
        values = strided(tensor)
        if values is None or not is_inexact(values):
            return
        self.memory.storage(values).is_old = True
        if not bad_flags([values])[0]:
            return
        numbers = wide(values)
        is_mask = bool((numbers <= 0).all()) if not values.is_complex() else False
        bad = ~torch.isfinite(numbers)
        harm = bad if infinity_is_harm or bool(torch.isnan(numbers[bad]).all()) else torch.isnan(numbers)
        has_harm = harm is bad or bool(harm.any())
        event = self._add_leaf(
            Leaf(kind, name, is_mask, is_number),
            self.context.place() if is_met else None,
            look_at(values, harm if has_harm else bad, self.memory),
        )
        self._mark(event.number, values, harm, bad)
        event.written.storages.append(storage_key(values))
        if has_harm:
            event.is_harmful = True
            self._note_harm(event)

    def note_input(self, tensor: Tensor) -> None:
        """A strided tensor of any shape enters the model: the rows of its bad values are known from here on."""
        self.memory.storage(tensor).from_batch = True
        shadow = self.memory.shadow(tensor)
        for node in nodes_in([shadow]) if shadow is not None else ():
            event = self.events[event_of(node)]
            event.enters_model |= event.leaf is None
            if shadow is not None and event.enters_model and not event.values.rows:
                whole, rows = self.memory.rows(tensor, shadow.grid != 0)
                event.values = replace(event.values, whole=whole, rows=rows)

    def add_unseen(self, name: str | None) -> Event:
        """Bad values that nothing dispatched has written, found after the step."""
        return self._add_leaf(Leaf("unseen", name), None, UNSEEN)

    def _add_leaf(self, leaf: Leaf, place: Place | None, values: BadValues) -> Event:
        event = Event(len(self.events), leaf.kind, place, leaf=leaf, values=values)
        self.events.append(event)
        return event

    def forget(self) -> None:
        """Drop all tensors."""
        self.memory, self.events = Memory(), []
        self._recorder = Recorder(self.memory)
        self._examiner, self._lineage = Examiner(self._recorder), Lineage(self.memory)

    # Dispatch

    def __enter__(self) -> "Tracer":
        self._garbage = RareCollection()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        self._garbage.end()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be wrapped once more for the compiler, which is off meanwhile: each operator would pay for that."""
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs and kwargs.get("generator") is not None:
            self.generators[id(kwargs["generator"])] = kwargs["generator"]
        if _get_mode(_FAKE) is not None:  # DTensor tries each new operator without memory first
            return func(*args, **kwargs)
        if types and any("__torch_dispatch__" in own_attributes(t) for t in types):
            return NotImplemented  # DTensor and others first come down to plain tensors
        if self.is_finished:
            return func(*args, **kwargs)
        op = self._operator(func)
        if op.name == "lift_fresh":  # what torch.tensor() made from Python numbers
            self._met(op, strided_leaves(args))
        if op.is_view:
            return func(*args, **kwargs)
        if op.name == "copy_" and self._is_wait(*args[:2]):
            return func(*args, **kwargs)
        if op.writes:
            inputs, mutated = read_and_written(op, args, kwargs)
            sources = self._met(op, inputs)
            call = self._recorder.before(func, args, kwargs, mutated)
        else:
            given, mutated = Arguments(self.memory, self._meet), []
            references = given.read(args), given.read(kwargs) if kwargs else kwargs
            inputs, sources = given.inputs, given.sources
            call = OperatorCall(func, args, kwargs, {}, references)
        shadows: list[Shadow | None] = []
        for tensor, source in zip(inputs, sources, strict=True):
            shadows.append(None if source.shadow is None else self.memory.shadow(tensor, source))
        out = func(*args, **kwargs)
        if op.is_collective:
            wait_for(out)
        written = results_of(out, mutated)
        records = self._lineage.carry_over(inputs, sources, written, in_model=self.context.num_open > 0)
        is_outside = self.context.is_outside
        if is_outside:
            for number in self._lineage.follow(op, call, inputs, written):
                self.events[number].scales_gradients = True
        if op.is_collective:
            for record in records:
                record.from_collective = True
        flags = bad_flags(written) if written else []
        self._recorder.after(op, call, inputs, written, records)
        reads_bad = any(shadows)
        if op.name == "_local_scalar_dense":
            if reads_bad:
                self.bad_reads.append((value_name(inputs[0]), frozenset(nodes_in(shadows))))
            if is_outside:
                self._lineage.note_read(inputs)
            return out
        if any(flags):
            self._record(Dispatch(op, call, inputs, shadows, written, flags))
        elif reads_bad:
            self._note_absorber(op, shadows)
        for tensor, record, flag in zip(written, records, flags, strict=True):
            if not flag and record.shadow is not None and is_inexact(tensor):
                self.memory.mark(tensor, None)
        return out

    def _operator(self, func: OpOverload) -> Operator:
        if id(func) not in self._operators:
            self._operators[id(func)] = operator(func), func
        return self._operators[id(func)][0]

    def _note_absorber(self, op: Operator, shadows: list[Shadow | None]) -> None:
        """An operator read bad values and returned finite ones."""
        for node in nodes_in(shadows):
            if not is_legitimate(node):
                self.events[event_of(node)].absorbers.append(op.name)

    def _is_wait(self, target: Tensor, source: Tensor) -> bool:
        """Whether gloo's `Work.wait` copies a result out of its own buffer, as it did in `_wait` before."""
        values = strided(target)
        record = None if values is None else self.memory.known(values)
        return record is not None and record.from_collective and self.memory.known(source) is None

    def _met(self, op: Operator, inputs: list[Tensor]) -> list[Storage]:
        """The records of what an operator reads, after a look at tensors that no traced operator made."""
        is_lifted = op.name == "lift_fresh"
        return [self.memory.known(tensor) or self._meet(tensor, is_lifted=is_lifted) for tensor in inputs]

    def _meet(self, tensor: Tensor, *, is_lifted: bool = False) -> Storage:
        """Look once at a tensor that no traced operator made; is_lifted: made from Python numbers."""
        if is_inexact(tensor):
            kind, is_number = self._kind_of(tensor, is_lifted), is_lifted and tensor.ndim == 0
            self.add_leaf(kind, None, tensor, infinity_is_harm=False, is_number=is_number, is_met=True)
        return self.memory.storage(tensor)

    def _kind_of(self, tensor: Tensor, is_lifted: bool) -> LeafKind:
        """What a tensor is that is first met now; is_lifted: made from Python numbers."""
        if is_lifted and not bool(torch.isnan(tensor.detach()).any()):
            return "constant"  # an infinity written down in the model's code
        if is_lifted and tensor.ndim == 0 and self.context.computes:
            return "written"  # `output[i] = nan` in a module or an autograd function
        if isinstance(tensor, torch.nn.Parameter):
            return "parameter"  # of a model that was not listed
        if self.context.in_model:
            return "unseen"
        return "constant" if is_lifted else "data"

    # Events

    def _mark(self, number: int, tensor: Tensor, harm: Tensor, bad: Tensor) -> None:
        """Note that an event wrote these bad elements, of which those of `harm` are harmful."""
        own, other = harmful(number), legitimate(number)
        if harm is bad:
            self.memory.mark(tensor, bad.to(torch.int32) * own, (own,))
        else:
            self.memory.mark(tensor, torch.where(harm, own, other).to(torch.int32) * bad, (own, other))

    def _note_harm(self, event: Event) -> None:
        self.first_harm = event.number if self.first_harm is None else self.first_harm

    def _record(self, dispatch: Dispatch) -> None:
        """Make an event of an operator that returned non-finite values."""
        place, op = self.context.place(), dispatch.op
        if not op.is_empty and all(shadow is None for shadow in dispatch.shadows):
            dispatch = replace(dispatch, shadows=self._unseen_writes(dispatch, place))
        ancestry = self._lineage.ancestry(dispatch, place)
        constant = ancestry.has_infinite_scalar
        if constant and is_arithmetic(op.name):  # ones * -inf is a mask; a prediction times inf is a mistake
            constant = not any(
                known.from_batch or known.from_gradient for known in self._lineage.known(dispatch.inputs)
            )
        event = Event(len(self.events), op.name, place, op.namespace, op.is_empty, ancestry=ancestry)
        self.events.append(event)
        harm: tuple[int, Spread] | None = None  # of the first output with harmful values
        for slot, tensor in dispatch.bad_outputs:
            spread = spread_of(dispatch, slot, constant=constant)
            self._mark(event.number, tensor, spread.harm, spread.bad)
            event.written.storages.append(storage_key(tensor))
            ancestry.harmful |= spread.harmful
            ancestry.turned |= spread.turned
            ancestry.passed |= spread.passed
            if spread.has_harm:
                harm = harm or (slot, spread)
            elif harm is None and event.values.shape == ():
                event.values = look_at(tensor, spread.bad, self.memory, slot)
        for node in ancestry.nodes:
            self.events[event_of(node)].children.append(event.number)
        self._note_written(event, dispatch.written)
        if harm is not None:
            event.is_harmful = True
            self._note_harmful(event, dispatch, place, *harm)

    def _note_written(self, event: Event, written: list[Tensor]) -> None:
        records = [self.memory.storage(tensor) for tensor in written]
        event.written.updates_old = any(record.is_old for record in records)
        event.written.replaces = frozenset().union(*(record.replaces for record in records))
        for tensor, record in zip(written, records, strict=True):
            if tensor.numel() == 1:
                record.carries |= {event.number}

    def _note_harmful(self, event: Event, dispatch: Dispatch, place: Place, slot: int, spread: Spread) -> None:
        """Look closer at the first harmful output, if this event may be an origin."""
        tensor = dispatch.written[slot]
        if not self._may_be_origin(event):
            whole, rows = self.memory.rows(tensor, spread.harm) if self._meets_batch(event) else ((), ())
            event.values = replace(event.values, shape=tuple(tensor.shape), whole=whole, rows=rows)
            return
        event.values = look_at(tensor, spread.harm, self.memory, slot)
        is_birth = not event.ancestry.harmful
        event.examination = self._examiner.examine(
            dispatch.call, event.values, place, is_birth=is_birth, is_turned=bool(event.ancestry.turned)
        )
        if is_birth and not event.is_allocation:  # garbage in new memory is no harm until it is read
            self._note_harm(event)

    def _may_be_origin(self, event: Event) -> bool:
        """A birth, a number put into a tensor, or a backward operator that may use what a forward branch discarded."""
        if not event.ancestry.harmful:
            return True
        parents = [self.events[event_of(node)] for node in event.ancestry.harmful]
        if any(parent.is_number for parent in parents):
            return True
        if event.place is None or not event.place.in_backward:
            return False
        return any(parent.place is not None and not parent.place.in_backward for parent in parents)

    def _meets_batch(self, event: Event) -> bool:
        """Whether bad values of something else, a leaf or what the loop drew and computed, first meet the batch."""
        parents = (self.events[event_of(node)] for node in event.ancestry.harmful)
        return event.ancestry.from_batch and any(not parent.ancestry.from_batch for parent in parents)

    def _unseen_writes(self, dispatch: Dispatch, place: Place) -> list[Shadow | None]:
        """Inputs that turned bad where nothing was dispatched, by NumPy or an extension."""
        values = [dispatch.call.value(tensor) for tensor in dispatch.inputs]
        if not any(bad_flags([value for value in values if value is not None])):
            return [None] * len(values)
        shadows: list[Shadow | None] = []
        for value in values:
            if value is None or not bad_flags([value])[0]:
                shadows.append(None)
                continue
            bad = ~torch.isfinite(wide(value))
            leaf = self._add_leaf(Leaf("unseen"), place, look_at(value, bad, self.memory))
            self._note_harm(leaf)
            own = harmful(leaf.number)
            shadows.append(Shadow(bad.to(torch.int32) * own, frozenset((own,))))
        return shadows
