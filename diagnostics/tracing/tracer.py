"""Every operator of a step, seen once: which outputs are not finite, and which earlier operators made them so."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diagnostics.tensors import bad_flags, is_inexact, strided
from diagnostics.tracing.events import Event
from diagnostics.tracing.judgement import judge
from diagnostics.tracing.nested import leaves
from diagnostics.tracing.operators import Operator, is_arithmetic, operator
from diagnostics.tracing.provenance import Memory, Shadow, harmful, is_legitimate, legitimate, nodes_in
from diagnostics.tracing.recomputation import Before, Recorder, element
from diagnostics.tracing.step_context import Place, StepContext

_JUDGED_BIRTHS = 512
_KEPT_CALLS = 256 * 2**20  # bytes of operands that are kept for the one that turns out to be the origin
_SELECTING = ("where", "masked_fill", "masked_fill_")


class Tracer(TorchDispatchMode):
    """Runs every operator as it is and keeps the provenance of what is not finite."""

    def __init__(self, context: StepContext) -> None:
        super().__init__()
        self.context = context
        self.memory = Memory()
        self.recorder = Recorder(self.memory)
        self.events: list[Event] = [Event(0, "", None)]  # numbers start at 1: node 0 means finite
        self.bad_reads: list[tuple[str, frozenset[int]]] = []  # value as text and nodes, of what the host read
        self._read_on_host: frozenset[int] = frozenset()  # events that the host knows a number of
        self.is_finished = False  # the origin is known: let the rest of the step run as it is
        self.first_harm: int | None = None  # the first event with harmful values, leaves included
        self._num_judged = 0
        self._bytes_left = _KEPT_CALLS

    # Leaves

    def add_leaf(self, kind: str, name: str | None, tensor: Tensor, *, infinity_is_harm: bool) -> Event | None:
        """Make a known tensor's non-finite elements the origin of what is computed from them."""
        values = strided(tensor)
        if values is None or not is_inexact(values):
            return None
        self.memory.storage(values).is_old = True
        if not bad_flags([values])[0]:
            return None
        event = self._new_event(kind, None)
        event.leaf, event.name = kind, name
        numbers = values.float() if values.dtype.itemsize == 1 else values  # 8-bit floats compare with nothing
        event.is_mask = bool((numbers <= 0).all()) if not values.is_complex() else False
        bad = ~torch.isfinite(numbers)
        harm = bad if infinity_is_harm or bool(torch.isnan(numbers[bad]).all()) else torch.isnan(numbers)
        has_harm = harm is bad or bool(harm.any())
        self._describe(event, values, harm if has_harm else bad)
        self._mark(event, values, harm, bad)
        if has_harm:
            self._note_harm(event)
        return event

    def forget(self) -> None:
        """Drop all tensors."""
        self.memory, self.events = Memory(), []
        self.recorder = Recorder(self.memory)

    # Dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any("__torch_dispatch__" in _own_attributes(t) for t in types):
            return NotImplemented  # DTensor and others first come down to plain tensors
        kwargs = kwargs or {}
        if self.is_finished:
            return func(*args, **kwargs)
        op = operator(func)
        if op.name == "lift_fresh":  # what torch.tensor() made of Python numbers
            self._meet(op, _tensors(args))
        if op.is_view:
            return func(*args, **kwargs)
        if op.name == "copy_" and self._is_wait(*args[:2]):
            return func(*args, **kwargs)
        inputs, mutated = self._inputs(op, args, kwargs)
        self._meet(op, inputs)
        shadows = [self.memory.shadow(t) for t in inputs]
        before = self.recorder.before(func, args, kwargs, mutated)
        out = func(*args, **kwargs)
        if op.is_collective:
            _wait(out)
        written = self._outputs(op, out, mutated)
        self._taint(inputs, written)
        if self.context.is_outside:
            self._follow(op, before, inputs, written)
        if op.is_collective:
            for tensor in written:
                self.memory.storage(tensor).from_collective = True
        flags = bad_flags(written)
        self.recorder.after(before, written)
        if op.name == "_local_scalar_dense":
            if any(shadow is not None for shadow in shadows):
                self.bad_reads.append((_value_name(inputs[0]), frozenset(nodes_in(shadows))))
            if self.context.is_outside:
                self._read_on_host |= self._carried(inputs)
            return out
        if any(flags):
            self._record(op, before, inputs, shadows, written, flags)
        elif any(shadow is not None for shadow in shadows):
            for node in nodes_in(shadows):
                if not is_legitimate(node):
                    self.events[node // 2].absorbers.append(op.name)
        for tensor, flag in zip(written, flags, strict=True):
            if not flag and is_inexact(tensor):
                self.memory.mark(tensor, None)
        return out

    def _inputs(self, op: Operator, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors that are read, and tensors that are written, by a call."""
        mutated = []
        for key in op.writes:
            value = args[key] if isinstance(key, int) and key < len(args) else kwargs.get(key, None)
            mutated += _tensors(value)
        # A written keyword-only argument is an `out=`.
        skipped = {id(t) for t in (mutated if op.overwrites else _tensors([kwargs.get(k) for k in op.writes]))}
        read = [t for t in _tensors((args, kwargs)) if id(t) not in skipped]
        return read, mutated

    def _is_wait(self, target: Tensor, source: Tensor) -> bool:
        """Whether gloo's `Work.wait` copies a result out of its own buffer, as it did in `_wait` before."""
        values = strided(target)
        record = None if values is None else self.memory.known(values)
        return record is not None and record.from_collective and self.memory.known(source) is None

    def _outputs(self, op: Operator, out: Any, mutated: list[Tensor]) -> list[Tensor]:
        seen: dict[int, Tensor] = {}
        for tensor in [*_tensors(out), *mutated]:
            seen.setdefault(id(tensor), tensor)
        return list(seen.values())

    def _meet(self, op: Operator, inputs: list[Tensor]) -> None:
        """Look once at tensors that no traced operator made."""
        for tensor in inputs:
            if is_inexact(tensor) and self.memory.known(tensor) is None:
                kind = "unseen" if self.context.in_model else "constant" if op.name == "lift_fresh" else "data"
                if isinstance(tensor, torch.nn.Parameter):
                    kind = "parameter"  # of a model that was not listed
                if op.name == "lift_fresh" and not bool(torch.isnan(tensor.detach()).any()):
                    kind = "constant"  # an infinity written down in the model's code
                elif op.name == "lift_fresh" and tensor.ndim == 0 and self.context.computes:
                    kind = "written"  # `output[i] = nan` in a module or an autograd function
                leaf = self.add_leaf(kind, None, tensor, infinity_is_harm=False)
                if leaf is not None:
                    leaf.place = self.context.place()
                    leaf.is_number = op.name == "lift_fresh" and tensor.ndim == 0

    def _taint(self, inputs: list[Tensor], written: list[Tensor]) -> None:
        known = [record for record in map(self.memory.known, inputs) if record is not None]
        in_model = self.context.in_model
        span = self.memory.spans(inputs)
        for tensor in written:
            record = self.memory.storage(tensor)
            record.version += 1
            record.span = span if self.memory.covers(tensor) else None
            record.from_batch |= any(source.from_batch for source in known)
            record.from_model |= in_model or any(source.from_model for source in known)
            record.from_gradient |= any(source.from_gradient for source in known)

    def _carried(self, tensors: list[Tensor]) -> frozenset[int]:
        records = (self.memory.known(tensor) for tensor in tensors)
        return frozenset().union(*(record.carries for record in records if record is not None))

    def _follow(self, op: Operator, before: Before, inputs: list[Tensor], written: list[Tensor]) -> None:
        """In the loop's own operators: which numbers gradients are multiplied by, and what succeeds an average."""
        carried = self._carried(inputs)
        if any(isinstance(value, float) for value in leaves((before.args, before.kwargs))):
            carried |= self._read_on_host  # it may have come by way of Python
        for tensor in written:
            record = self.memory.storage(tensor)
            if tensor.numel() == 1:
                record.carries = carried
            elif record.from_gradient:
                for number in carried:
                    self.events[number].scales_gradients = True
            if is_arithmetic(op.name) and op.name.rstrip("_") not in ("div", "_foreach_div"):
                same = [(t, self.memory.storage(t)) for t in inputs if t.shape == tensor.shape]
                old = {t.untyped_storage()._cdata for t, known in same if known.is_old}
                record.replaces = frozenset(old).union(*(known.replaces for _, known in same))
            else:
                record.replaces = frozenset()

    # Events

    def _new_event(self, op: str, place: Place | None) -> Event:
        event = Event(len(self.events), op, place)
        self.events.append(event)
        return event

    def _mark(self, event: Event, tensor: Tensor, harm: Tensor, bad: Tensor) -> None:
        """Note that an event wrote these bad elements, of which those of `harm` are harmful."""
        own, other = harmful(event.number), legitimate(event.number)
        if harm is bad:
            self.memory.mark(tensor, bad.to(torch.int32) * own, (own,))
        else:
            self.memory.mark(tensor, torch.where(harm, own, other).to(torch.int32) * bad, (own, other))
        event.written.append(tensor.untyped_storage()._cdata)

    def _note_harm(self, event: Event) -> None:
        self.first_harm = event.number if self.first_harm is None else self.first_harm

    def _describe(self, event: Event, tensor: Tensor, harm: Tensor, slot: int = 0) -> None:
        position = int(harm.reshape(-1).to(torch.uint8).argmax())
        value = tensor.reshape(-1)[position]
        event.value = _value_name(value)
        event.shape, event.dtype, event.slot = tuple(tensor.shape), tensor.dtype, slot
        event.index = tuple(int(i) for i in torch.unravel_index(torch.tensor(position), tensor.shape))
        event.whole, event.rows = self.memory.rows(tensor, harm)

    def _record(
        self,
        op: Operator,
        before: Before,
        inputs: list[Tensor],
        shadows: list[Shadow | None],
        written: list[Tensor],
        flags: list[bool],
    ) -> None:
        place = self.context.place()
        if all(shadow is None for shadow in shadows) and not op.is_empty:
            shadows = self._unseen_writes(op, inputs, before, place)
        event = self._new_event(op.name, place)
        event.namespace, event.is_allocation = op.namespace, op.is_empty
        constant = event.has_infinite_scalar = _has_infinite_scalar(before.args, before.kwargs)
        if constant and is_arithmetic(op.name):  # ones * -inf is a mask; a prediction times inf is a mistake
            records = [record for record in map(self.memory.known, inputs) if record is not None]
            constant = not any(record.from_batch or record.from_gradient for record in records)
        best: tuple[Tensor, Tensor, int] | None = None
        for slot, (tensor, flag) in enumerate(zip(written, flags, strict=True)):
            if not flag:
                continue
            bad = ~torch.isfinite(tensor)
            own = self._aligned(op, before, inputs, shadows, slot)
            harm, harm_nodes, turned, passed = _trace_elements(op, before, tensor, bad, own, constant)
            if op.is_empty:  # its garbage is nobody's value until it is read
                harm = bad
            self._mark(event, tensor, harm, bad)
            event.passed |= passed
            if harm is bad or bool(harm.any()):
                event.harm_parents |= harm_nodes
                event.turned |= turned
                best = best or (tensor, harm, slot)
            elif best is None and event.shape == ():
                self._describe(event, tensor, bad, slot)
        parents = event.harm_parents | event.turned | event.passed
        for node in parents:
            self.events[node // 2].children.append(event.number)
        if best is not None and self._may_be_origin(event):
            self._describe(event, *best)
        elif best is not None:
            event.shape = tuple(best[0].shape)
        self._taint_event(event, inputs, written)
        records = [self.memory.storage(tensor) for tensor in written]
        event.updates_old = any(record.is_old for record in records)
        event.replaces = frozenset().union(*(record.replaces for record in records))
        for tensor, record in zip(written, records, strict=True):
            if tensor.numel() == 1:
                record.carries |= {event.number}
        if best is None or not self._may_be_origin(event):
            return
        if op.is_empty:  # garbage in new memory is no harm until it is read
            event.judgement = judge(event, before, self.recorder)
            return
        if op.namespace in ("aten", "prims"):  # others need more than torch, or ranks
            event.call = before.frozen(self._bytes_left)
            self._bytes_left -= 0 if event.call is None else event.call.num_bytes
        if event.harm_parents:
            return
        self._note_harm(event)
        if self._num_judged < _JUDGED_BIRTHS:
            self._num_judged += 1
            event.judgement = judge(event, before, self.recorder)  # now: its operands are still in memory

    def _may_be_origin(self, event: Event) -> bool:
        """A birth, a number put into a tensor, or a backward operator that may use what a forward branch discarded."""
        if not event.harm_parents or any(self.events[node // 2].is_number for node in event.harm_parents):
            return True
        if event.place is None or not event.place.in_backward:
            return False
        places = (self.events[node // 2].place for node in event.harm_parents)
        return any(place is not None and not place.in_backward for place in places)

    def _taint_event(self, event: Event, inputs: list[Tensor], written: list[Tensor]) -> None:
        records = [record for record in map(self.memory.known, inputs) if record is not None]
        event.span = self.memory.spans(inputs)
        if event.span is None and event.place is not None and event.place.in_backward:
            # The gradient is everybody's, what the forward call saved is its sample's own.
            event.span = min(filter(None, map(self.memory.span, inputs)), key=lambda s: s.last - s.first, default=None)
        event.from_batch = any(self.memory.storage(tensor).from_batch for tensor in written)  # a part may be written
        event.from_model = any(record.from_model for record in records)
        event.from_gradient = any(record.from_gradient for record in records)

    def _aligned(
        self,
        op: Operator,
        before: Before,
        inputs: list[Tensor],
        shadows: list[Shadow | None],
        slot: int,
    ) -> list[tuple[Tensor, Shadow]]:
        """(input, shadow) pairs that concern one output: for a foreach operator those of its place in the lists."""
        pairs = [(t, s) for t, s in zip(inputs, shadows, strict=True) if s is not None]
        if not op.is_foreach:
            return pairs
        concerned = {id(t) for t in _tensors(element(before.args, before.kwargs, slot))}
        return [(t, s) for t, s in pairs if id(t) in concerned]

    def _unseen_writes(self, op: Operator, inputs: list[Tensor], before: Before, place: Place) -> list[Shadow | None]:
        """Inputs that turned bad where nothing was dispatched, by NumPy or an extension."""
        values = [v for v in (before.value(t) for t in inputs) if v is not None]
        if not any(bad_flags(values)):
            return [None] * len(inputs)
        shadows: list[Shadow | None] = []
        for tensor in inputs:
            value = before.value(tensor)
            if value is None or not bad_flags([value])[0]:
                shadows.append(None)
                continue
            leaf = self._new_event("unseen", place)
            leaf.leaf = "unseen"
            self._note_harm(leaf)
            bad = ~torch.isfinite(value)
            self._describe(leaf, value, bad)
            own = harmful(leaf.number)
            shadows.append(Shadow(bad.to(torch.int32) * own, frozenset((own,))))
        return shadows


def _trace_elements(
    op: Operator, before: Before, out: Tensor, bad: Tensor, inputs: Sequence[tuple[Tensor, Shadow]], constant: bool
) -> tuple[Tensor, set[int], set[int], set[int]]:
    """Which of the bad elements of an output are harmful (`bad` itself: all), and what they came from.

    Returns (harmful elements, their harmful parents, their legitimate parents where they have no harmful one,
    parents of the legitimate elements).
    """
    candidates = {node for _, shadow in inputs for node in shadow.candidates}
    if not constant and op.name not in _SELECTING and not any(is_legitimate(node) for node in candidates):
        return bad, nodes_in(shadow for _, shadow in inputs), set(), set()
    is_nan = torch.isnan(out)
    grids = [_selected(op, before, tensor, shadow.grid) for tensor, shadow in inputs]
    if op.is_elementwise and all(_fits(grid, out) for grid in grids):
        grids = [grid.expand(out.shape) for grid in grids]
        harm_in = torch.zeros_like(bad)
        legit_in = torch.zeros_like(bad)
        for grid in grids:
            harm_in |= (grid > 0) & (grid % 2 == 0)
            legit_in |= grid % 2 == 1
        legit = bad & ~is_nan & ~harm_in & (legit_in | constant)
        harm = bad & ~legit
        at_harm = {node for grid in grids for node in grid[harm].unique().tolist()} - {0}
        at_legit = {node for grid in grids for node in grid[legit].unique().tolist()} - {0}
    else:
        found = {node for grid in grids for node in grid.unique().tolist()} - {0}
        has_harm = any(not is_legitimate(node) for node in found)
        legit = bad & ~is_nan & (not has_harm and bool(found or constant))
        harm = bad & ~legit
        at_harm = at_legit = found
    harm_nodes = {node for node in at_harm if not is_legitimate(node)}
    turned = set() if harm_nodes else at_harm
    return harm, harm_nodes, turned, {node for node in at_legit if is_legitimate(node)}


def _selected(op: Operator, before: Before, tensor: Tensor, grid: Tensor) -> Tensor:
    """The nodes of an input without those of elements that the operator does not look at."""
    if op.name == "where" and len(before.args) == 3:
        condition, chosen, other = before.args
        if tensor is chosen and tensor is not other:
            return torch.where(condition, grid, 0)
        if tensor is other and tensor is not chosen:
            return torch.where(condition, 0, grid)
    if op.name in ("masked_fill", "masked_fill_") and tensor is before.args[0]:
        return torch.where(before.args[1], 0, grid)
    return grid


def _fits(shadow: Tensor, out: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(shadow.shape, out.shape) == out.shape
    except RuntimeError:
        return False


def _has_infinite_scalar(args: Any, kwargs: Any) -> bool:
    flat = leaves((args, kwargs))
    return any(isinstance(value, float) and value in (float("inf"), float("-inf")) for value in flat)


def _tensors(value: Any) -> list[Tensor]:
    """Strided tensors in nested arguments; sparse ones by their values."""
    flat = leaves(value)
    found = (strided(item) for item in flat if isinstance(item, Tensor))
    return [tensor for tensor in found if tensor is not None]


@cache
def _own_attributes(cls: type) -> frozenset[str]:
    skipped = (Tensor, torch.nn.Parameter, torch.nn.Buffer, object)
    return frozenset(name for base in cls.__mro__ if base not in skipped for name in vars(base))


def _value_name(value: Tensor) -> str:
    if value.is_complex():
        parts = torch.view_as_real(value)
        value = parts[~torch.isfinite(parts)][0]
    return str(float(value.detach()))


def _wait(out: Any) -> None:
    """A collective's result is there only once its work is done."""
    flat = leaves(out)
    for item in flat:
        if isinstance(item, torch.ScriptObject) and item._type().name() == "Work":  # type: ignore[attr-defined]
            item = torch.distributed.Work.unbox(item)
        if not isinstance(item, Tensor) and hasattr(item, "wait"):
            item.wait()
