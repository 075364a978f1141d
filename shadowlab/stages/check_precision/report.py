"""What check-precision found of a policy, and its tables."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from diagnostics.statistics import Deviation
from shadowlab.console import Column, FittedTable


@dataclass(frozen=True)
class LayerRow:
    """One leaf module, compared with the reference."""

    activation: Deviation
    gradient: Deviation | None
    """None where it is zero by construction, so that its error means nothing."""


@dataclass(frozen=True)
class UpdateRow:
    """One parameter's first update."""

    relative_error: float
    """Compared with AdamW in float64 on the same gradient."""
    lost: float
    """Fraction of elements that do not move though they should."""
    num_nonfinite: int
    """Elements that are NaN or Inf afterwards."""


@dataclass(frozen=True)
class PolicyReport:
    """What was found of one precision policy; it holds where there is no problem."""

    policy: str
    gradient_scale: float
    """What the loss was multiplied by."""
    layers: dict[str, LayerRow]
    updates: dict[str, UpdateRow]
    problems: dict[str, str]
    """Layer or parameter -> what is wrong, the worst first."""


def layers_table(report: PolicyReport, num_layers: int) -> FittedTable:
    """The layers that a policy is hardest on, those that decide against it first."""
    scaled = f", loss times {report.gradient_scale:g}" if report.gradient_scale != 1.0 else ""
    numbers = ("activation error", "bits left", "gradient error", "bits left", "underflow", "update lost")
    table = FittedTable(
        [Column("layer", is_head=True), *(Column(title, is_right=True) for title in numbers)],
        title=f"{report.policy}{scaled}: the {min(num_layers, len(report.layers))} layers it is hardest on",
    )
    order = sorted(report.layers, key=lambda name: (name not in report.problems, -_error(report.layers[name])))
    for name in order[:num_layers]:
        row, gradient = report.layers[name], report.layers[name].gradient
        lost = [u.lost for p, u in report.updates.items() if p.rpartition(".")[0] == name]
        table.add_row(
            name,
            f"{row.activation.relative_error:.1e}",
            _bits(row.activation),
            "zero" if gradient is None else f"{gradient.relative_error:.1e}",
            "" if gradient is None else _bits(gradient),
            "" if gradient is None else f"{gradient.underflow:.1%}",
            f"{max(lost):.1%}" if lost else "",
        )
    return table


def summary_table(reports: Iterable[PolicyReport]) -> FittedTable:
    """A row a policy."""
    numbers = ("activation error", "gradient error", "least headroom", "underflow", "update", "verdict")
    table = FittedTable([Column("policy", is_head=True), *map(Column, numbers)], title="policies")
    for report in reports:
        gradients = [row.gradient for row in report.layers.values() if row.gradient is not None]
        bits = [one.headroom_bits for row in report.layers.values() for one in (row.activation, row.gradient) if one]
        bad = sum(update.num_nonfinite > 0 for update in report.updates.values())
        lost = max((update.lost for update in report.updates.values()), default=0.0)
        table.add_row(
            report.policy,
            _spread([row.activation.relative_error for row in report.layers.values()]),
            _spread([one.relative_error for one in gradients]),
            f"{min(bits, default=math.inf):.1f} bits",
            f"up to {max((one.underflow for one in gradients), default=0.0):.1%}",
            f"{bad} tensors NaN or Inf" if bad else f"up to {lost:.1%} lost",
            Text("does not hold", "red") if report.problems else Text("holds", "green"),
        )
    return table


def _spread(errors: list[float]) -> str:
    return f"{statistics.median(errors):.1e}, up to {max(errors):.1e}" if errors else "none"


def _error(row: LayerRow) -> float:
    errors = [one.relative_error for one in (row.activation, row.gradient) if one is not None]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _bits(part: Deviation) -> str:
    return f"{part.headroom_bits:.1f}"
