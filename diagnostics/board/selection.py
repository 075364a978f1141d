"""Which numbers of a record TensorBoard's event files get: all cannot be written, a thousand layers take 0.7 MB a step.

Bound: a run of any length writes at most MOST_BYTES of scalars, histograms and text, in however many sessions. On top
comes what was asked for beyond that: layers drawn in full. Pictures are not counted here: whoever adds them bounds
them. Each kind of content has a `Purse`:

NUMBERS    numbers of the run, and its charts: every record at first, then records ever further apart. A step that was
           skipped, tripped or is not finite is drawn in any case, on credit.
JUDGED     the same of evaluations, counted by themselves.
DETAILS    layers and parameters, all at once (a dump), where the purse holds enough. In between, every measured step
           has the median, least and largest of each block's parameters, and its layers in alarm: not finite, or less
           than LOW_HEADROOM_BITS from overflow; the first of them in the order of execution, ALARM_BYTES at most.
           Histograms are paid from it, too.
WORDS      incidents, findings, verdicts of stages, the layout of the charts.

The last record and the last measured step of a session are drawn when it ends, be it by a `header`, which begins the
next. What says nothing is left out: `nonfinite` and `fraction_zero` of a layer until they are above 0, `headroom_bits`
until it is below MEANT_HEADROOM_BITS, as it is in every float16 tensor and in no sound one of a wider type.

All this is a function of the records alone, so a view that is rebuilt from them is the same. metrics.jsonl holds every
number of every step.
"""

import math
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diagnostics.board.purse import Purse
from diagnostics.board.run_charts import MAX_SUB_RUNS, RUN_CHARTS, RunChart
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

NUMBERS: dict[str, int] = {"credit": 6_000_000, "total": 24_000_000, "spread": 100_000, "debt": 500_000}
JUDGED: dict[str, int] = {"credit": 1_000_000, "total": 6_000_000, "spread": 10_000, "debt": 500_000}
DETAILS: dict[str, int] = {"credit": 4_000_000, "total": 90_000_000, "spread": 50_000, "debt": 4_000_000}
WORDS_BYTES: dict[str, int] = {"credit": 1_000_000, "total": 3_000_000, "spread": 1_000}
MOST_BYTES = sum(Purse(**sizes).bound for sizes in (NUMBERS, JUDGED, DETAILS, WORDS_BYTES))
"""140 MB: of scalars, histograms and text, in a run of any length."""

ALARM_BYTES = 4_000
BRIEF_BYTES = 5_000  # blocks of a record; more would leave nothing for the layers
LOW_HEADROOM_BITS = 3.0  # a factor of 8 below the dtype's largest number
MEANT_HEADROOM_BITS = 40.0  # log2 of float16's largest over its least number

_BIN_BYTES, _HISTOGRAM_BYTES = 16, 100  # a limit and a count in float64; the rest of a histogram's event
_EVENT_BYTES = 40  # frame, time, step
_FLOAT32_MAX = 3.4028234663852886e38


@dataclass
class Drawn:
    """Numbers of one step as TensorBoard's `Summary` holds them: protobuf's wire format, one entry a number."""

    step: int
    entries: list[bytes] = field(default_factory=list)
    run: str = ""
    """The sub-run that it belongs to; "" for the run itself."""
    has_histograms: bool = False
    """Whether those of the record are drawn as well."""

    @property
    def size(self) -> int:
        return _EVENT_BYTES + sum(map(len, self.entries))


class Selection:
    """Takes records in order and says what to write of each.

    Args:
        in_full: layers and parameters by name, of which every statistic of every record is drawn, beyond the bound.
        charts: of the run's own numbers; may be exchanged at any time.
    """

    def __init__(
        self, in_full: Callable[[str], bool] = lambda name: False, charts: Sequence[RunChart] = RUN_CHARTS
    ) -> None:
        self.blocks = BlockNumbers()
        self.charts = charts
        self.words = Purse(**WORDS_BYTES)
        """For whoever writes the texts of these records."""
        self.num_dumps = 0
        """Measured steps of which all is drawn."""
        self._kinds = Kinds()
        self._in_full = in_full
        self._numbers, self._judged, self._details_purse = Purse(**NUMBERS), Purse(**JUDGED), Purse(**DETAILS)
        self._cost = 0  # bytes of the last dump
        self._pending: tuple[Mapping[str, Any], set[str]] | None = None  # the last measured step, where it was no dump
        self._undrawn: dict[str, Mapping[str, Any]] = {}  # kind -> the last record, where its numbers were left out
        self._prefixes: dict[tuple[str, str], bytes] = {}
        self._meant: set[tuple[str, str]] = set()  # (layer, key) of what has said something once
        self._sub_runs: set[str] = set()

    @property
    def spent(self) -> int:
        """Bytes so far."""
        return sum(purse.spent for purse in (self._numbers, self._judged, self._details_purse, self.words))

    @property
    def shows_headroom(self) -> bool:
        """Whether any layer's was low enough to be drawn."""
        return any(key == "headroom_bits" for _, key in self._meant)

    def take(self, record: Mapping[str, Any]) -> list[Drawn]:
        """What is to be written now; of the session before, too, where the record begins a new one."""
        kind = self._kinds.learn(record)
        if kind == "header":
            return self.finish()
        if "step" not in record or kind in WORDS:
            return []
        judged = self._kinds.is_evaluation(kind)
        purse = self._judged if judged else self._numbers
        purse.pour()
        if not judged:
            self._details_purse.pour()
        parts = self._run_parts(record)
        if purse.take(sum(part.size for part in parts), in_debt=_is_odd(record)):
            self._undrawn.pop(kind, None)
        else:
            parts = [Drawn(record["step"])]
            self._undrawn[kind] = record
        drawn = parts[0]
        sizes = sum(map(_histogram_size, record.get("histograms", {}).items()))
        drawn.has_histograms = sizes > 0 and self._details_purse.take(sizes)
        if record.get("layers") or record.get("parameters"):
            self.blocks.learn(record)
            self._measured(record, drawn)
        return [part for part in parts if part.entries or part.has_histograms]

    def finish(self) -> list[Drawn]:
        """The last record of each kind and the last measured step, where they were not drawn."""
        last: list[Drawn] = []
        for kind, record in self._undrawn.items():
            parts = self._run_parts(record)
            purse = self._judged if self._kinds.is_evaluation(kind) else self._numbers
            if purse.take(sum(part.size for part in parts), in_debt=True):
                last += parts
        self._undrawn = {}
        if self._pending is not None:
            record, have = self._pending
            self._pending = None
            dump = Drawn(record["step"], list(self._details(record, without=have)))
            if dump.entries and self._details_purse.take(dump.size, in_debt=True):
                self.num_dumps += 1
                last.append(dump)
        return [part for part in last if part.entries]

    def _run_parts(self, record: Mapping[str, Any]) -> list[Drawn]:
        """The run's own numbers: of the run itself first, then of each sub-run."""
        own = Drawn(record["step"], [self._entry("", tag, value) for tag, value in run_numbers(record)])
        parts = {"": own}
        drawn: set[tuple[str, str]] = set()
        for chart in self.charts:
            for run, value in chart.numbers(record):
                if run and run not in self._sub_runs:
                    if len(self._sub_runs) >= MAX_SUB_RUNS:
                        continue
                    self._sub_runs.add(run)
                if (run, chart.tag) not in drawn:  # names that are cut may be the same
                    drawn.add((run, chart.tag))
                    part = parts.setdefault(run, Drawn(record["step"], run=run))
                    part.entries.append(self._entry("", chart.tag, value))
        return list(parts.values())

    def _measured(self, record: Mapping[str, Any], drawn: Drawn) -> None:
        purse = self._details_purse
        blocks = list(self._blocks(record))
        size = sum(map(len, blocks))
        is_brief = size <= BRIEF_BYTES
        if is_brief and purse.take(size, in_debt=True):
            drawn.entries += blocks
        if purse.allows(self._cost):
            details = [*([] if is_brief else blocks), *self._details(record)]
            self._cost = sum(map(len, details))
            self._pending = None
            if purse.take(self._cost, in_debt=True):
                self.num_dumps += 1
                drawn.entries += details
        else:
            have: set[str] = set()
            details = list(self._alarms(record, have))
            if purse.take(sum(map(len, details)), in_debt=True):
                drawn.entries += details
            else:
                have = set()
            self._pending = record, have
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
            if self._says_something(name, key, value):
                yield self._entry(name, key, value)

    def _says_something(self, name: str, key: str, value: float) -> bool:
        """Whether a number is worth a point; from its first one on, every number of that layer and key is."""
        if key == "headroom_bits":
            says = not value > MEANT_HEADROOM_BITS
        elif key in ("nonfinite", "fraction_zero"):
            says = value != 0
        else:
            return True
        if says:
            self._meant.add((name, key))
        return says or (name, key) in self._meant

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


def _is_odd(record: Mapping[str, Any]) -> bool:
    """A step that a person looks for."""
    values = (record.get("loss"), record.get("grad_norm"))
    bad = any(isinstance(value, float) and not math.isfinite(value) for value in values)
    return bad or bool(record.get("skipped")) or bool(record.get("tripped"))


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
