"""Which samples a bad tensor's rows are: along the batch dimension, also where that is merged with others behind it."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from diagnostics.tracing.events import Event
from diagnostics.tracing.step_batch import StepBatch

_PHASES = ("data", "forward", "loss", "backward")  # later ones compute with weights
_MOST = 256  # events that are followed


@dataclass(frozen=True)
class Rows:
    """Rows of a step's bad values as samples."""

    events: Sequence[Event]
    batch: StepBatch
    weight_shapes: Collection[tuple[int, ...]]
    """Of all parameters; any shape."""

    def samples(self, event: Event, path: Iterable[Event], phase: str) -> tuple[int, ...]:
        """Of an origin, on its path to a sink; none where it has no batch dimension.

        Of what was computed from some rows alone, as in a loop over samples, at most those. What the loop drew or
        computed itself (noise, a weight by t) has samples where its rows are still the bad ones once it meets the
        batch: weights of classes are not.
        """
        if self.batch.size is None or phase not in _PHASES or _is_of_gradients(event):
            return ()
        if event.kind == "data" and event.name is not None and self.batch.is_samples:
            return (int(event.name),)
        own = self._of(event, phase)
        if event.ancestry.from_batch or (event.enters_model and event.values.whole[:1] == (self.batch.size,)):
            return own
        met = [rows for later in self._meeting(event, path) if (rows := self._of(later, phase))]
        if not met:  # nothing of the batch was met, or nobody looked
            return own if event.kind == "data" or (phase == "loss" and self._is_one_a_sample(event)) else ()
        reached = {row for rows in met for row in rows}
        if event.kind == "data":
            return tuple(row for row in own if row in reached) or own
        aligned = event.values.whole[:1] == (self.batch.size,) and reached <= set(own)
        return tuple(sorted(reached)) if aligned else ()

    def _is_one_a_sample(self, event: Event) -> bool:
        whole = event.values.whole
        return whole[:1] == (self.batch.size,) and set(whole[1:]) <= {1}

    def _meeting(self, event: Event, path: Iterable[Event]) -> Iterator[Event]:
        """The first events computed from the batch as well, behind one that was not; those of the path where it has
        some, since others may lead nowhere."""
        on_path = {one.number for one in path}
        seen, queue, others = {event.number}, deque([event.number]), []
        found = False
        while queue and len(seen) < _MOST:
            for number in self.events[queue.popleft()].children:
                later = self.events[number]
                if number in seen:
                    continue
                seen.add(number)
                if not later.ancestry.from_batch and not later.enters_model:
                    queue.append(number)
                elif later.values.rows:
                    if number in on_path:
                        found = True
                        yield later
                    else:
                        others.append(later)
        if not found:
            yield from others

    def _of(self, event: Event, phase: str) -> tuple[int, ...]:
        """The bad rows of a tensor as samples, if the batch is its first dimension."""
        size, whole = self.batch.size, event.values.whole
        assert size is not None
        if phase == "backward" and (whole in self.weight_shapes or whole[::-1] in self.weight_shapes):
            return ()
        first, last, length = 0, size - 1, whole[0] if whole else 0
        span = event.ancestry.span
        if span is not None and span.length and span.length % size == 0:
            first, last = (row // (span.length // size) for row in (span.first, span.last))
        num = last - first + 1
        if length and length % num == 0:
            return tuple(sorted({first + row // (length // num) for row in event.values.rows}))
        return tuple(range(first, last + 1)) if num < size else ()


def _is_of_gradients(event: Event) -> bool:
    """Whether it computed with parameters' gradients, in the loop or in a hook: their rows, and those of a bucket that
    they are flattened into, are no samples."""
    place = event.place
    accumulates = place is not None and place.in_backward and "AccumulateGrad" in (place.node or "AccumulateGrad")
    return accumulates or event.ancestry.from_gradient
