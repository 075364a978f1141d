"""Names under which TensorBoard shows a run's numbers: short, stable, blocks in the order of execution.

TensorBoard sorts groups and tags alphabetically, so every block carries its number.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from diagnostics.board.run_charts import is_number
from diagnostics.records import WORDS

_NOT_OF_THE_RUN = ("layers", "parameters", "histograms")
PARAMETER_KEYS = {"gradient_norm": "parameter_gradient_norm", "update_ratio": "update_ratio"}


def block_of(name: str) -> str:
    """The block a module or parameter belongs to: `down_blocks.1.resnets.0.conv1` -> `down_blocks.1`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def within_block(name: str) -> str:
    """The name without its block: `resnets.0.conv1`; the whole name where it is a block of its own."""
    return name.removeprefix(f"{block_of(name)}.")


class BlockNumbers:
    """The number of each block in the order of execution, from 1, as the first record with layers shows it.

    A block that comes later gets the next number; none ever changes, so tags stay the same over a resume.
    """

    def __init__(self) -> None:
        self._groups: dict[str, str] = {}
        self._group_of: dict[str, str] = {}  # a layer's or parameter's
        self._with_parameters: set[str] = set()
        self._with_layers: set[str] = set()
        self._width = 2

    def learn(self, record: Mapping[str, Any]) -> None:
        """Number the blocks of a record that are new. Parameters' blocks come behind those of layers."""
        names = (*record.get("layers", {}), *record.get("parameters", {}))
        new = [name for name in names if name not in self._group_of]
        blocks = [block for block in dict.fromkeys(map(block_of, new)) if block not in self._groups]
        if blocks and not self._groups:
            self._width = max(2, len(str(len(blocks))))
        for block in blocks:
            self._groups[block] = f"{len(self._groups) + 1:0{self._width}d} {block}"
        self._group_of |= {name: self._groups[block_of(name)] for name in new}
        self._with_layers |= {self._group_of[name] for name in new if name in record.get("layers", {})}
        self._with_parameters |= {self._group_of[name] for name in new if name in record.get("parameters", {})}

    def group(self, name: str) -> str:
        """The group of a layer or parameter that was learned: `03 down_blocks.1`."""
        return self._group_of[name]

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups, in order."""
        return tuple(self._groups.values())

    @property
    def with_layers(self) -> tuple[str, ...]:
        """The groups that hold layers, in order."""
        return tuple(group for group in self.groups if group in self._with_layers)

    @property
    def with_parameters(self) -> tuple[str, ...]:
        """The groups that hold parameters, in order."""
        return tuple(group for group in self.groups if group in self._with_parameters)


def run_numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`KIND/KEY` of every number of the record itself, NaN and Inf included; `KIND/KEY/INNER` of dictionaries of
    numbers (`train/loss_by_t/0.25-0.50`); `nonfinite/NAME` of histograms: how many values are in no bin, if any."""
    kind = record.get("kind", "train")
    if kind in WORDS:
        return
    for key, value in record.items():
        if is_number(value) and key != "step":
            yield f"{kind}/{key}", value
        elif isinstance(value, Mapping) and key not in _NOT_OF_THE_RUN:
            yield from ((f"{kind}/{key}/{inner}", own) for inner, own in value.items() if is_number(own))
    for name, content in record.get("histograms", {}).items():
        num_bad = content["num_nan"] + content["num_inf"]
        if num_bad:
            yield f"nonfinite/{name}", num_bad


def layer_numbers(parts: Mapping[str, Mapping[str, float]], *, has_gradients: bool) -> Iterator[tuple[str, float]]:
    """What is drawn of a layer; the rest of its statistics is in metrics.jsonl.

    activation_norm, max_abs, fraction_zero: of its output. gradient_norm: of the gradient by its output; 0 where none
    arrives in a record that has gradients: the layer is cut off. nonfinite: values of both that are NaN or Inf.
    headroom_bits: the lesser of both; none where all is zero.
    """
    activation, gradient = parts.get("activation", {}), parts.get("gradient", {})
    if "norm" in activation:
        yield "activation_norm", activation["norm"]
    if "norm" in gradient or has_gradients:
        yield "gradient_norm", gradient.get("norm", 0.0)
    for key in ("max_abs", "fraction_zero"):
        if key in activation:
            yield key, activation[key]
    yield "nonfinite", nonfinite_of(parts)
    headroom = headroom_of(parts)
    if headroom is not None and headroom != math.inf:
        yield "headroom_bits", headroom


def other_layer_numbers(parts: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    """The statistics that `layer_numbers` leaves out, as `PART_STATISTIC`."""
    for part, statistics in parts.items():
        for statistic, value in statistics.items():
            drawn = statistic == "norm" or (part == "activation" and statistic in ("max_abs", "fraction_zero"))
            if not drawn and not (statistic == "headroom_bits" and value == math.inf):
                yield f"{part}_{statistic}", value


def nonfinite_of(parts: Mapping[str, Mapping[str, float]]) -> float:
    """How many values of activation and gradient together are NaN or Inf."""
    return sum(statistics.get("num_nonfinite", 0) for statistics in parts.values())


def headroom_of(parts: Mapping[str, Mapping[str, float]]) -> float | None:
    """The lesser headroom of activation and gradient in bits, NaN if one is; None where neither was measured."""
    bits = [statistics["headroom_bits"] for statistics in parts.values() if "headroom_bits" in statistics]
    return next((b for b in bits if math.isnan(b)), min(bits)) if bits else None


def parameter_numbers(values: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """`parameter_gradient_norm` and `update_ratio` of a parameter, where they have a value."""
    for key, tag in PARAMETER_KEYS.items():
        value = values.get(key)
        if value is not None:
            yield tag, value


def block_numbers(group: str, parameters: Iterable[Mapping[str, float | None]]) -> Iterator[tuple[str, float]]:
    """Median, least and largest over the parameters of a block; NaN counts as larger than anything, so it is seen."""
    rows = list(parameters)
    for key, tag in PARAMETER_KEYS.items():
        values = [value for row in rows if (value := row.get(key)) is not None]
        if values:
            values.sort(key=lambda value: (math.isnan(value), value))
            for name, value in (("median", values[(len(values) - 1) // 2]), ("min", values[0]), ("max", values[-1])):
                yield f"{group}/block_{tag}/{name}", value
