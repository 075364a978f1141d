"""Which numbers of a record TensorBoard's event files get: all cannot be written, a thousand layers take 0.7 MB a step.

Bound: n training records add at most CAPACITY + n x GRANT bytes of scalars and histograms, and each session one dump at
its end: 12.7 MB for a thousand of SDXL's. On top comes what was asked for beyond that: more histograms than the grants
pay, layers drawn in full. Pictures are not counted here: whoever adds them bounds them.

Numbers of the run are always written. Those of layers and parameters are, all at once (a dump), where the bucket holds
enough: every training record pours GRANT bytes into it, up to CAPACITY, which is also its first content, so that the
first steps of any model and every step of a small one are drawn. In between, every measured step has the median, least
and largest of each block's parameters, and its layers in alarm: not finite, or less than LOW_HEADROOM_BITS from
overflow; the first of them in the order of execution, ALARM_BYTES at most. The last measured step of a session is
dumped when it ends, be it by a `header`, which begins the next.

All this is a function of the records alone, so a view that is rebuilt from them is the same. metrics.jsonl holds every
number of every step.
"""

import math
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diagnostics.board.tags import (
    BlockNumbers,
    block_numbers,
    headroom_of,
    layer_numbers,
    nonfinite_of,
    other_layer_numbers,
    parameter_numbers,
    run_numbers,
    within_block,
)
from diagnostics.records import WORDS, Kinds, rounded

GRANT = 10_000  # bytes a training record
CAPACITY = 2_000_000  # bytes
ALARM_BYTES = 4_000
LOW_HEADROOM_BITS = 3.0  # a factor of 8 below the dtype's largest number

_BIN_BYTES, _HISTOGRAM_BYTES = 16, 100  # a limit and a count in float64; the rest of a histogram's event
_EVENT_BYTES = 40  # frame, time, step
_FLOAT32_MAX = 3.4028234663852886e38


@dataclass
class Drawn:
    """Numbers of one step as TensorBoard's `Summary` holds them: protobuf's wire format, one entry a number."""

    step: int
    entries: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        return _EVENT_BYTES + sum(map(len, self.entries))


class Selection:
    """Takes records in order and says what to write of each.

    Args:
        in_full: layers and parameters by name, of which every statistic of every record is drawn, beyond the bound.
    """

    def __init__(self, in_full: Callable[[str], bool] = lambda name: False) -> None:
        self.blocks = BlockNumbers()
        self._kinds = Kinds()
        self._in_full = in_full
        self._tokens = CAPACITY
        self.num_dumps = 0  # measured steps of which all is drawn
        self._cost = 0  # bytes of the last dump
        self._pending: tuple[Mapping[str, Any], set[str]] | None = None
        self._prefixes: dict[tuple[str, str], bytes] = {}

    def take(self, record: Mapping[str, Any]) -> list[Drawn]:
        """What is to be written now; of the session before, too, where the record begins a new one."""
        kind = self._kinds.learn(record)
        if kind == "header":
            return self.finish()
        if "step" not in record or kind in WORDS:
            return []
        if not self._kinds.is_evaluation(kind):  # those are no training steps: they pour nothing
            self._tokens = min(CAPACITY, self._tokens + GRANT)
        drawn = Drawn(record["step"], [self._entry("", tag, value) for tag, value in run_numbers(record)])
        self._tokens -= drawn.size + sum(map(_histogram_size, record.get("histograms", {}).items()))
        if record.get("layers") or record.get("parameters"):
            self.blocks.learn(record)
            self._measured(record, drawn)
        return [drawn] if drawn.entries else []

    def finish(self) -> list[Drawn]:
        """The last measured step, where it was not dumped."""
        if self._pending is None:
            return []
        record, have = self._pending
        self._pending = None
        self.num_dumps += 1
        last = Drawn(record["step"], list(self._details(record, without=have)))
        self._tokens -= last.size
        return [last] if last.entries else []

    def _measured(self, record: Mapping[str, Any], drawn: Drawn) -> None:
        blocks = list(self._blocks(record))
        size = sum(map(len, blocks))
        is_brief = size <= GRANT // 2  # more would leave nothing for the layers
        if is_brief:
            self._tokens -= size
            drawn.entries += blocks
        if self._tokens >= min(self._cost, CAPACITY - GRANT):
            details = [*([] if is_brief else blocks), *self._details(record)]
            self._cost = sum(map(len, details))
            self._pending = None
            self.num_dumps += 1
        else:
            have: set[str] = set()
            details = list(self._alarms(record, have))
            self._pending = record, have
        self._tokens -= sum(map(len, details))
        drawn.entries += details
        for name in self._chosen(record):
            drawn.entries += self._everything(record, name)

    def _blocks(self, record: Mapping[str, Any]) -> Iterator[bytes]:
        own: dict[str, list[Mapping[str, float | None]]] = {}
        for name, values in record.get("parameters", {}).items():
            own.setdefault(self.blocks.group(name), []).append(values)
        for group, rows in own.items():
            for tag, value in block_numbers(group, rows):
                yield self._entry("", tag, value)

    def _details(self, record: Mapping[str, Any], without: Collection[str] = ()) -> Iterator[bytes]:
        layers = record.get("layers", {})
        has_gradients = any("gradient" in parts for parts in layers.values())
        for name, parts in layers.items():
            if name not in without and not self._in_full(name):
                yield from self._layer(name, parts, has_gradients)
        for name, values in record.get("parameters", {}).items():
            if not self._in_full(name):
                yield from (self._entry(name, key, value) for key, value in parameter_numbers(values))

    def _layer(self, name: str, parts: Mapping[str, Any], has_gradients: bool) -> Iterator[bytes]:
        for key, value in layer_numbers(parts, has_gradients=has_gradients):
            yield self._entry(name, key, value)

    def _alarms(self, record: Mapping[str, Any], have: set[str]) -> Iterator[bytes]:
        """Of the layers in alarm, whose names go to `have`."""
        layers = record.get("layers", {})
        has_gradients = any("gradient" in parts for parts in layers.values())
        left = ALARM_BYTES
        for name, parts in layers.items():
            headroom = headroom_of(parts)
            low = headroom is not None and not headroom >= LOW_HEADROOM_BITS  # NaN is low
            if (low or nonfinite_of(parts)) and not self._in_full(name):
                entries = list(self._layer(name, parts, has_gradients))
                left -= sum(map(len, entries))
                if left < 0:
                    return
                have.add(name)
                yield from entries

    def _chosen(self, record: Mapping[str, Any]) -> list[str]:
        names = dict.fromkeys((*record.get("layers", {}), *record.get("parameters", {})))
        return [name for name in names if self._in_full(name)]

    def _everything(self, record: Mapping[str, Any], name: str) -> Iterator[bytes]:
        layers = record.get("layers", {})
        if name in layers:
            has_gradients = any("gradient" in parts for parts in layers.values())
            yield from self._layer(name, layers[name], has_gradients)
            yield from (self._entry(name, key, value) for key, value in other_layer_numbers(layers[name]))
        values = record.get("parameters", {}).get(name, {})
        yield from (self._entry(name, key, value) for key, value in parameter_numbers(values))

    def _entry(self, name: str, key: str, value: float) -> bytes:
        """`repeated Value value = 1` of a Summary, with `string tag = 1` and `float simple_value = 2`.

        The bytes up to the value are made once: ten thousand `Summary.Value` objects take ten times as long.
        """
        prefix = self._prefixes.get((name, key))
        if prefix is None:
            tag = (f"{self.blocks.group(name)}/{key}/{within_block(name)}" if name else key).encode()
            body = b"\x0a" + _varint(len(tag)) + tag + b"\x15"
            prefix = self._prefixes[name, key] = b"\x0a" + _varint(len(body) + 4) + body
        return prefix + struct.pack("<f", _within_float32(value))


def _within_float32(value: float) -> float:
    """As records keep it, so that a rebuilt view is the same; a finite value beyond float32 is drawn at its limit."""
    if not math.isfinite(value):
        return value
    return max(-_FLOAT32_MAX, min(_FLOAT32_MAX, rounded(float(value))))


def _varint(number: int) -> bytes:
    """Protobuf's: 7 bits a byte, the least first, the high bit on all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _histogram_size(item: tuple[str, Mapping[str, Any]]) -> int:
    name, content = item
    return len(name.encode()) + _HISTOGRAM_BYTES + _BIN_BYTES * len(content["counts"])
