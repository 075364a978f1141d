"""Which step of a run validation judged best, by a metric whose better direction the run's header states."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics import read_records
from diagnostics.files import reason_of
from shadowlab.charts import Metric
from shadowlab.errors import UserError

BEST = "@best"
"""What ends the name of a run whose best checkpoint is meant; `@best:METRIC` for another metric than the first."""


@dataclass(frozen=True)
class Best:
    """The best of some steps."""

    step: int
    metric: Metric
    value: float


def best_step(records: Path, steps: Collection[int], metric: str | None = None) -> Best | None:
    """The step that validation judged best; of equal ones the latest. None where none of `steps` was judged.

    Args:
        records: metrics.jsonl.
        steps: those that there is a checkpoint of.
        metric: its name; None: the first of the task, as the header has them.

    Raises:
        UserError: the records cannot be read, or the task has no such metric: its direction would be guessed.
    """
    known: dict[str, Metric] = {}
    found: dict[int, Any] = {}
    try:
        for record in read_records(records):
            if isinstance(own := record.get("metrics"), list):
                known = {one.name: one for one in map(Metric.from_json, own)}
            if record.get("kind") == "validation" and record.get("step") in steps:
                found[int(record["step"])] = record
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{records}: cannot be read ({reason}); name a checkpoint instead of {BEST}") from error
    if not found or not known:
        return None
    name = metric if metric is not None else next(iter(known))
    if name not in known:
        raise UserError(f"{BEST}:{name}: the run states no direction for it; it has {', '.join(known)}")
    chosen, sign = known[name], 1.0 if known[name].higher_is_better else -1.0
    judged = {step: record.get(name) for step, record in found.items()}
    values = {step: float(one) for step, one in judged.items() if isinstance(one, int | float) and math.isfinite(one)}
    if not values:
        return None
    step = max(values, key=lambda one: (sign * values[one], one))
    return Best(step, chosen, values[step])
