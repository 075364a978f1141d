"""What a run recorded over its steps: curves, and tables of layers by steps. Every view and health rule reads this.

Only metrics.jsonl is read; see `records.kinds` for what its lines say.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from diagnostics.records.kinds import (
    PARTS,
    STATISTICS,
    Header,
    Health,
    Incident,
    Kinds,
    Stage,
    TrainingStep,
)
from diagnostics.records.lines import read_records


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
        self._all: dict[str, dict[int, Mapping[str, Any]]] = {}
        self.headers = []
        self.last_stage = None
        self._kinds = Kinds()
        if kind is not None:
            self._kinds.steps.add(kind)
        last_training = None
        for record in records:
            step, own = record.get("step"), self._kinds.learn(record)
            if own == "header":
                self.headers.append(cast(Header, record))
            if not isinstance(step, int):
                continue
            self._all.setdefault(own, {})[step] = record
            if own == "stage":
                self.last_stage = cast(Stage, record)
            elif own in self._kinds.steps:
                last_training = own
                self.last_stage = None
        begun = next((str(header["stage"]) for header in reversed(self.headers) if "stage" in header), "train")
        self.kind = kind or last_training or begun

    @classmethod
    def read(cls, path: Path, *, kind: str | None = None) -> "History":
        """Read the records of a metrics.jsonl.

        Raises:
            OSError, ValueError: as `read_records`.
        """
        return cls(cast(Iterator[Mapping[str, Any]], read_records(path)), kind=kind)

    @property
    def header(self) -> Header:
        """What was last written about the training that `kind` names; empty where nothing was."""
        return next((header for header in reversed(self.headers) if header.get("stage") == self.kind), Header())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all records that have a step, in the order in which they first appear."""
        return tuple(self._all)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Those of `kinds` that judge the same samples with the same noise each time; see `records.kinds`."""
        return tuple(kind for kind in self._all if self._kinds.is_evaluation(kind))

    @overload
    def records(self, kind: None = None) -> list[TrainingStep]: ...
    @overload
    def records(self, kind: Literal["incident"]) -> list[Incident]: ...
    @overload
    def records(self, kind: Literal["health"]) -> list[Health]: ...
    @overload
    def records(self, kind: Literal["stage"]) -> list[Stage]: ...
    @overload
    def records(self, kind: str) -> Sequence[Mapping[str, Any]]: ...
    def records(self, kind: str | None = None) -> Sequence[Mapping[str, Any]]:
        """The records of one kind, by ascending step. None: those of the training steps."""
        own = self._all.get(self.kind if kind is None else kind, {})
        return [own[step] for step in sorted(own)]

    @property
    def last_step(self) -> int:
        """The largest step of any record; 0 where there is none."""
        return max((step for own in self._all.values() for step in own), default=0)

    def curve(self, key: str, kind: str | None = None) -> Curve:
        """One number of the records of one kind over their steps; steps without it are left out.

        Args:
            key: of the records; `loss_by_t.0.25-0.50` looks into a dictionary, unless a key has this whole name.
            kind: None: the training steps.
        """
        outer, _, inner = key.partition(".")
        points = []
        for record in self.records(kind or self.kind):
            value = record.get(key, record.get(outer))
            if isinstance(value, Mapping):
                value = value.get(inner)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                points.append((record["step"], float(value)))
        return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))

    @cached_property
    def _measured(self) -> list[TrainingStep]:
        return [record for record in self.records() if record.get("layers") or record.get("parameters")]

    def measured_records(self) -> list[TrainingStep]:
        """The records of the steps that tables have, with what else is known of them: `skipped`, `loss_scale`."""
        return self._measured

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Layers in the order of execution; one that ran in some steps only comes after its predecessor in those."""
        return _merged_order(record.get("layers", {}) for record in self._measured)

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        return _merged_order(record.get("parameters", {}) for record in self._measured)

    def layers(self, statistic: str, part: str = "activation") -> LayerTable:
        """A statistic (one of `STATISTICS`) of a part (one of `PARTS`) of every layer.

        Raises:
            ValueError: no such statistic or part.
        """
        if statistic not in STATISTICS or part not in PARTS:
            raise ValueError(f"{part} {statistic}: parts are {', '.join(PARTS)}; statistics {', '.join(STATISTICS)}")
        rows = {name: row for row, name in enumerate(self.layer_names)}
        cells = [
            (rows[name], column, parts[part][statistic])
            for column, record in enumerate(self._measured)
            for name, parts in record.get("layers", {}).items()
            if statistic in parts.get(part, {})
        ]
        return self._table(self.layer_names, cells)

    def parameters(self, key: str) -> LayerTable:
        """`gradient_norm` or `update_ratio` of every parameter.

        Raises:
            ValueError: no such key.
        """
        if key not in ("gradient_norm", "update_ratio"):
            raise ValueError(f"{key}: parameters have gradient_norm and update_ratio")
        rows = {name: row for row, name in enumerate(self.parameter_names)}
        cells = [
            (rows[name], column, value)
            for column, record in enumerate(self._measured)
            for name, numbers in record.get("parameters", {}).items()
            if (value := numbers.get(key)) is not None
        ]
        return self._table(self.parameter_names, cells)

    def _table(self, names: tuple[str, ...], cells: list[tuple[int, int, float]]) -> LayerTable:
        steps = tuple(record["step"] for record in self._measured)
        values = torch.full((len(names), len(steps)), math.nan, dtype=torch.float64)
        present = torch.zeros(len(names), len(steps), dtype=torch.bool)
        if cells:
            row, column, value = zip(*cells, strict=True)
            place = (torch.tensor(row), torch.tensor(column))
            values[place] = torch.tensor(value, dtype=torch.float64)
            present[place] = True
        return LayerTable(names, steps, values, present)


def _merged_order(parts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    order: list[str] = []
    for names in dict.fromkeys(map(tuple, parts)):  # as a rule every step has the same
        places = {name: place for place, name in enumerate(order)}
        behind: dict[int, list[str]] = {}  # new names by the place of the known one before them
        place = -1
        for name in names:
            if name in places:
                place = places[name]
            else:
                behind.setdefault(place, []).append(name)
        merged = behind.get(-1, [])
        for place, name in enumerate(order):
            merged += [name, *behind.get(place, [])]
        order = merged
    return tuple(order)
