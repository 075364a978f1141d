"""From the places where a non-finite value does harm back to the operator or leaf that it came from."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from diagnostics.tracing.events import Event
from diagnostics.tracing.judgement import EMPTY_LOGARITHMS
from diagnostics.tracing.provenance import event_of, harmful, is_legitimate
from diagnostics.tracing.sinks import SELECTIONS, Sink

# Sinks that a gradient scaler whose scale is too high fills as a matter of course.
_CALIBRATED = ("gradient", "clip norm", "scaled loss")


@dataclass(frozen=True)
class Origin:
    """Where it began."""

    event: Event
    path: list[Event]
    """From there to the sink."""
    sink: Sink
    discarded: Event | None = None
    """Birth of a value that a forward branch had left out, where a backward operator used it again."""


@dataclass
class _Found:
    """What a walk back from the sinks has met."""

    came_from: dict[int, int | None] = field(default_factory=dict)
    """Node -> the next one on the way to its sink; None at the sink."""
    births: list[tuple[int, Event | None]] = field(default_factory=list)
    """(node, birth of what a forward branch had left out)."""
    legitimate_roots: list[int] = field(default_factory=list)
    """Nodes of infinities that were written on purpose."""


def find_origin(events: Sequence[Event], sinks: Sequence[Sink], *, scale: float | None) -> Origin | None:
    """The earliest origin on a path to a sink; None where there is none, or all that there is calibrates a scaler.

    Args:
        events: in the order of time, with parents before children; the first is a placeholder.
        sinks: where bad values were found.
        scale: of a gradient scaler that is in use and may overflow in backward; None without one.
    """
    return _Search(events, sinks).run(scale)


class _Search:
    def __init__(self, events: Sequence[Event], sinks: Sequence[Sink]) -> None:
        self._events = events
        self._sinks = sinks
        self._sink_of: dict[int, Sink] = {}
        for sink in sinks:
            for node in sink.nodes:
                self._sink_of.setdefault(node, sink)
        self._used = self._used_forward()
        self._roots: dict[int, Event] = {}
        self._firsts: dict[int, Event] = {}

    def run(self, scale: float | None) -> Origin | None:
        found = _Found()
        hard = [sink for sink in self._sinks if sink.kind not in _CALIBRATED]
        soft = [sink for sink in self._sinks if sink.kind in _CALIBRATED]
        self._walk(found, hard)
        num_hard = len(found.births)
        self._walk(found, soft)
        births = [
            (event, node, discarded)
            for i, (node, discarded) in enumerate(found.births)
            if not _calibrates(event := self._begun_by(node), scale) or i < num_hard
        ]
        if births:
            event, node, discarded = min(births, key=lambda birth: birth[0].number)
            return self._origin(event, node, discarded, found)
        if not found.births and found.legitimate_roots:
            return self._written_infinity(min(found.legitimate_roots), found)
        return None

    def _walk(self, found: _Found, sinks: Iterable[Sink]) -> None:
        """Breadth first from all sinks, so that paths are short. What an earlier walk reached stays its own."""
        queue: deque[int] = deque()
        for sink in sinks:
            for node in sorted(sink.nodes - found.came_from.keys()):
                found.came_from[node] = None
                queue.append(node)
        while queue:
            node = queue.popleft()
            event = self._events[event_of(node)]
            parents, discarded = self._parents(node, event)
            if not parents and is_legitimate(node):
                found.legitimate_roots.append(node)
            elif not parents:
                found.births.append((node, discarded))
            for parent in sorted(parents):
                if parent not in found.came_from:
                    found.came_from[parent] = node
                    queue.append(parent)

    def _parents(self, node: int, event: Event) -> tuple[set[int], Event | None]:
        if is_legitimate(node):
            return event.ancestry.passed, None
        parents = event.ancestry.harmful
        if event.place is None or not event.place.in_backward:
            return parents, None
        left_out = {parent for parent in parents if self._was_discarded(self._events[event_of(parent)])}
        return parents - left_out, self._first(min(left_out)) if left_out else None

    def _origin(self, event: Event, node: int, discarded: Event | None, found: _Found) -> Origin:
        """What began at a birth, with its path: that of a single one, for a path is as long as the step."""
        path, sink = self._path(node, found), self._sink_at_end(node, found)
        if event is path[0]:
            return Origin(event, path, sink, discarded)
        return Origin(event, [event, *path], sink)

    def _begun_by(self, node: int) -> Event:
        """The birth itself; or the leaf whose infinity it turned into harm, where that infinity was no mask."""
        event = self._events[event_of(node)]
        turned, judgement = event.ancestry.turned, event.examination.judgement
        if turned and not (judgement and judgement.cause == "masked_row"):
            roots = [self._root(parent) for parent in turned]
            leaves = [root for root in roots if root.kind not in (None, "constant") and not root.is_mask]
            if leaves:
                return min(leaves, key=lambda root: root.number)
        return event

    def _written_infinity(self, node: int, found: _Found) -> Origin:
        """An infinity written on purpose that reached a sink: the operator that changed its sign, or its source."""
        path, sink = self._path(node, found), self._sink_at_end(node, found)
        if path[0].kind not in (None, "constant") and not path[0].is_mask:
            return Origin(path[0], path, sink)
        first = path[0].place
        if first is not None and first.milestone in ("backward", "optimizer") and not first.in_model:
            return Origin(path[0], path, sink)  # no mask is written there: a rate or a scale is infinite
        value = path[0].values.value
        turning = (i for i, event in enumerate(path) if event.op in EMPTY_LOGARITHMS or event.values.value != value)
        start = next(turning, 0)
        return Origin(path[start], path[start:], sink)

    def _path(self, node: int, found: _Found) -> list[Event]:
        path = []
        current: int | None = node
        while current is not None:
            path.append(self._events[event_of(current)])
            current = found.came_from[current]
        return path

    def _sink_at_end(self, node: int, found: _Found) -> Sink:
        while (following := found.came_from[node]) is not None:
            node = following
        return self._sink_of[node]

    def _root(self, node: int) -> Event:
        """The leaf or operator that first had a legitimate infinity."""
        return self._followed(node, self._roots, lambda event: event.ancestry.passed)

    def _first(self, node: int) -> Event:
        """The birth of a harmful value."""
        return self._followed(node, self._firsts, lambda event: event.ancestry.harmful)

    def _followed(self, node: int, known: dict[int, Event], parents: Callable[[Event], set[int]]) -> Event:
        """Back by the earliest parents to an event without any; `known` keeps the ends: each way is gone once."""
        event, passed = self._events[event_of(node)], []
        while event.number not in known and (before := parents(event)):
            passed.append(event.number)
            event = self._events[event_of(min(before))]
        end = known.get(event.number, event)
        known.update(dict.fromkeys([*passed, event.number], end))
        return end

    def _used_forward(self) -> set[int]:
        """Events outside backward whose bad values something computed with, or which reached a sink."""
        used: set[int] = set()
        for event in reversed(self._events):
            is_forward = event.place is None or not event.place.in_backward
            if not is_forward:
                continue
            in_sink = harmful(event.number) in self._sink_of
            if (
                event.leaf is not None
                or in_sink
                or not set(event.absorbers) <= SELECTIONS
                or any(child in used for child in event.children)
            ):
                used.add(event.number)
        return used

    def _was_discarded(self, event: Event) -> bool:
        """Whether all that used a forward value left its bad elements out by choice (torch.where)."""
        is_forward = event.place is not None and not event.place.in_backward
        return is_forward and event.number not in self._used


def _calibrates(event: Event, scale: float | None) -> bool:
    """A gradient scaler whose scale is too high overflows in backward: it skips the step and halves the scale."""
    place, judgement = event.place, event.examination.judgement
    if scale is None or scale <= 1.0 or place is None or judgement is None:
        return False
    return judgement.exception == "overflow" and (place.in_backward or "scale" in place.marks)
