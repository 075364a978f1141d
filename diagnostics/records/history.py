"""What a run recorded over its steps: curves, and tables of layers by steps. Every view and health rule reads this.

Only metrics.jsonl is read; see `records.kinds` for what its lines say. Of a long one the numbers are kept in a file of
their own (`records.index`), and its records are read again when they are asked for: the memory does not grow with it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from diagnostics.records.columns import CELLS
from diagnostics.records.kinds import PARTS, STATISTICS, Header, Health, Incident, Kinds, Stage, TrainingStep
from diagnostics.records.lines import open_records, read_records
from diagnostics.records.numbers import ABSENT_BITS
from diagnostics.records.reading import Rows
from diagnostics.records.source import KEPT_BYTES, RecordsInFile, RecordsInMemory, Source


@dataclass(frozen=True)
class Curve:
    """One number over steps."""

    steps: tuple[int, ...]
    """Ascending."""
    values: tuple[float, ...]
    """As many; NaN and Inf included."""

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.steps, self.values, strict=True)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None


@dataclass(frozen=True)
class LayerTable:
    """One statistic of every layer, or of every parameter, over the steps that measured it."""

    names: tuple[str, ...]
    """Layers in the order of execution, parameters in that of the model."""
    steps: tuple[int, ...]
    """Ascending."""
    values: Tensor
    """(names, steps) float64; NaN where a step has no number for a layer."""
    present: Tensor
    """(names, steps) bool: tells a missing number from a measured NaN."""

    def curve(self, name: str) -> Curve:
        """The values of one layer or parameter, at the steps that have one."""
        row = self.names.index(name)
        columns = [i for i, there in enumerate(self.present[row].tolist()) if there]
        return Curve(tuple(self.steps[i] for i in columns), tuple(self.values[row, columns].tolist()))


@dataclass(frozen=True)
class Samples:
    """The samples of training steps that drew some, by ascending step."""

    counts: Tensor
    """(steps,) int64: how many each step drew; 0 where it says nothing of them."""
    numbers: Tensor
    """One step after another, int32: places among `ids`."""
    ids: Sequence[Any]
    """Of samples, as they were recorded."""


class History:
    """The records of one run.

    Args:
        records: as `read_records` gives them, in the order in which they were written.
        kind: of the training steps to look at; by default that of the last one, or of the last that a header
            announced.

    Records of one kind and step that were written twice count once, as written last.
    """

    kind: str
    """The kind of the training steps looked at, such as `train`."""
    headers: list[Header]
    """In the order in which they were written."""
    last_stage: Stage | None
    """The result of the stage that was written last; None where training went on after it, as that of a resumed run
    does."""

    def __init__(self, records: Iterable[Mapping[str, Any]], *, kind: str | None = None) -> None:
        self._look_at(RecordsInMemory(records), kind)

    @classmethod
    def read(
        cls, path: Path, *, kind: str | None = None, on_damage: Callable[[Exception], None] | None = None
    ) -> "History":
        """Read the records of a metrics.jsonl. A long one is read once: an index is left beside it, if it can be.

        Args:
            on_damage: takes the error of a damaged line, or of a file that cannot be read; the history is that of the
                records before then. None: it is raised.

        Raises:
            OSError, ValueError: as `read_records`.
        """
        history = cls.__new__(cls)
        try:
            source = _source(path, on_damage)
        except OSError as error:
            if on_damage is None:
                raise
            on_damage(error)
            source = RecordsInMemory([])
        history._look_at(source, kind)
        return history

    def _look_at(self, source: Source, kind: str | None) -> None:
        self._source, self._columns = source, source.columns
        known = self._columns.known
        self._kinds = Kinds()
        self._kinds.steps |= {*known.training, *([] if kind is None else [kind])}
        self.headers = [cast(Header, source.record(number)) for number in known.headers]
        stage = known.last_stage
        if stage is not None and kind is not None and bool((self._columns.rows(kind).records > stage).any()):
            stage = None
        self.last_stage = None if stage is None else cast(Stage, source.record(stage))
        begun = next((str(header["stage"]) for header in reversed(self.headers) if "stage" in header), "train")
        self.kind = kind or known.last_training or begun

    @property
    def header(self) -> Header:
        """What was last written about the training that `kind` names; empty where nothing was."""
        return next((header for header in reversed(self.headers) if header.get("stage") == self.kind), Header())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all records that have a step, in the order in which they first appear."""
        return tuple(self._columns.known.kinds)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Those of `kinds` that judge the same samples with the same noise each time; see `records.kinds`."""
        return tuple(kind for kind in self.kinds if self._kinds.is_evaluation(kind))

    @overload
    def records(self, kind: None = None) -> Sequence[TrainingStep]: ...
    @overload
    def records(self, kind: Literal["incident"]) -> Sequence[Incident]: ...
    @overload
    def records(self, kind: Literal["health"]) -> Sequence[Health]: ...
    @overload
    def records(self, kind: Literal["stage"]) -> Sequence[Stage]: ...
    @overload
    def records(self, kind: str) -> Sequence[Mapping[str, Any]]: ...
    def records(self, kind: str | None = None) -> Sequence[Mapping[str, Any]]:
        """The records of one kind, by ascending step. None: those of the training steps.

        Those of a long file are read from it, one after another, each time this is iterated over: seconds for all
        training steps, which `steps`, `curve`, `skipped` and the tables spare.
        """
        return self._source.records(self._rows(kind).records)

    def record_of(self, step: int, kind: str | None = None) -> Mapping[str, Any] | None:
        """The record of one step; None where there is none.

        Raises:
            ValueError: the file was changed meanwhile, so that it stands there no more.
        """
        rows = self._rows(kind)
        place = int(torch.searchsorted(rows.steps, step))
        if place == len(rows) or int(rows.steps[place]) != step:
            return None
        record = self._source.record(int(rows.records[place]))
        if record.get("step") != step:
            raise ValueError(f"step {step}: its record was changed while it was read; run the command again")
        return record

    def steps(self, kind: str | None = None) -> tuple[int, ...]:
        """Of the records of one kind, ascending."""
        return tuple(self._rows(kind).steps.tolist())

    def count(self, kind: str | None = None) -> int:
        """How many records of one kind there are."""
        return len(self._rows(kind))

    def _rows(self, kind: str | None) -> Rows:
        return self._columns.rows(self.kind if kind is None else kind)

    @property
    def last_step(self) -> int:
        """The largest step of any record; 0 where there is none."""
        return max((int(rows.steps[-1]) for kind in self.kinds if len(rows := self._rows(kind))), default=0)

    def keys(self, kind: str | None = None, *, within: str | None = None) -> tuple[str, ...]:
        """Of the numbers in the records of one kind, in the order in which they first appear.

        Args:
            within: a key that holds a dictionary of numbers: its keys.
        """
        kind = self.kind if kind is None else kind
        return self._columns.keys(kind) if within is None else self._columns.inner_keys(kind, within)

    def curve(self, key: str, kind: str | None = None) -> Curve:
        """One number of the records of one kind over their steps; steps without it are left out.

        Args:
            key: of the records; `loss_by_t.0.25-0.50` looks into a dictionary, unless a key has this whole name.
            kind: None: the training steps.
        """
        places, values = self.points(key, kind)
        return Curve(tuple(self._rows(kind).steps[places].tolist()), tuple(values.tolist()))

    def numbers(self, key: str, kind: str | None = None) -> Tensor:
        """One number of every record of one kind, (records,) float64: NaN where it is NaN or not there."""
        found = torch.full((self.count(kind),), math.nan, dtype=torch.float64)
        places, values = self.points(key, kind)
        found[places] = values
        return found

    def points(self, key: str, kind: str | None = None) -> tuple[Tensor, Tensor]:
        """As `curve`: (places among the records of the kind, ascending, int64; values, float64), both (points,)."""
        kind = kind or self.kind
        places, values = self._columns.column(kind, key)
        outer, dot, inner = key.partition(".")
        if not dot:
            return places, values
        others, more = self._columns.column(kind, (outer, inner))
        new = ~torch.isin(others, places)
        places, order = torch.cat([places, others[new]]).sort()
        return places, torch.cat([values, more[new]])[order]

    def skipped(self, kind: str | None = None) -> Tensor:
        """Whether the gradient scaler skipped the step of each record, (records,) bool."""
        return self._columns.flagged(self.kind if kind is None else kind, "skipped")

    def tripped(self, kind: str | None = None) -> Tensor:
        """Whether the step of each record met a value that is not finite, (records,) bool."""
        return self._columns.flagged(self.kind if kind is None else kind, "tripped")

    def samples(self) -> Samples:
        """Which samples the training steps drew."""
        return Samples(*self._columns.samples(self.kind), self._columns.known.samples)

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """The steps that tables have, ascending: those that measured layers or parameters."""
        return tuple(self._rows(None).steps[self._measured].tolist())

    @property
    def _measured(self) -> Tensor:
        """Their places among the training steps, (M,) int64."""
        return self._columns.measured(self.kind)[0]

    def measured_numbers(self, key: str) -> Tensor:
        """`numbers` of the steps that tables have, (M,) float64."""
        return self.numbers(key)[self._measured]

    @property
    def measured_skipped(self) -> Tensor:
        """`skipped` of the steps that tables have, (M,) bool."""
        return self.skipped()[self._measured]

    @property
    def measured_tripped(self) -> Tensor:
        """`tripped` of the steps that tables have, (M,) bool."""
        return self.tripped()[self._measured]

    @property
    def has_layers(self) -> Tensor:
        """Which of the steps that tables have measured layers, (M,) bool."""
        return torch.isin(self._measured, self._columns.measures(self.kind, "layers"))

    @property
    def has_parameters(self) -> Tensor:
        """Which of the steps that tables have measured parameters, (M,) bool."""
        return torch.isin(self._measured, self._columns.measures(self.kind, "parameters"))

    def measured_records(self) -> Sequence[TrainingStep]:
        """The records of the steps that tables have, with what else is known of them. They are read as those of
        `records` are."""
        return cast(Sequence[TrainingStep], self._source.records(self._rows(None).records[self._measured]))

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Layers in the order of execution; one that ran in some steps only comes after its predecessor in those."""
        return self._columns.names(self.kind, "layers")

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return self._columns.names(self.kind, "parameters")

    def named_parameters(self) -> Tensor:
        """Which parameter has an entry in which of the steps that tables have, be it without a number.

        (names, M) bool.
        """
        return self._columns.named(self.kind, "parameters", self.parameter_names)

    def layers(self, statistic: str, part: str = "activation", columns: slice | Tensor = slice(None)) -> LayerTable:
        """A statistic (one of `STATISTICS`) of a part (one of `PARTS`) of every layer.

        Args:
            columns: (n,) places among `measured_steps`, ascending: those of the table, which has tens of MB else.

        Raises:
            ValueError: no such statistic or part.
        """
        if statistic not in STATISTICS or part not in PARTS:
            raise ValueError(f"{part} {statistic}: parts are {', '.join(PARTS)}; statistics {', '.join(STATISTICS)}")
        return self._table("layers", (part, statistic), columns)

    def parameters(self, key: str, columns: slice | Tensor = slice(None)) -> LayerTable:
        """`gradient_norm` or `update_ratio` of every parameter.

        Args:
            columns: (n,), as in `layers`.

        Raises:
            ValueError: no such key.
        """
        if ("", key) not in CELLS["parameters"]:
            raise ValueError(f"{key}: parameters have gradient_norm and update_ratio")
        return self._table("parameters", ("", key), columns)

    def _table(self, part: str, cell: tuple[str, str], columns: slice | Tensor) -> LayerTable:
        names, steps = self._columns.names(self.kind, part), self._rows(None).steps[self._measured[columns]]
        values = self._columns.table(self.kind, part, CELLS[part].index(cell), names, columns)
        return LayerTable(names, tuple(steps.tolist()), values, values.view(torch.int64) != ABSENT_BITS)


def _source(path: Path, on_damage: Callable[[Exception], None] | None) -> Source:
    with open_records(path) as file:
        is_long = file.seek(0, 2) > KEPT_BYTES
    if is_long:
        return RecordsInFile(path, on_damage)
    return RecordsInMemory(_until_damage(path, on_damage))


def _until_damage(path: Path, on_damage: Callable[[Exception], None] | None) -> Iterator[Mapping[str, Any]]:
    try:
        yield from cast(Iterator[Mapping[str, Any]], read_records(path))
    except ValueError as error:
        if on_damage is None:
            raise
        on_damage(error)
