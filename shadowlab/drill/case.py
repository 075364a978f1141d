"""One drill: what goes wrong, who met it first, what the verdict must say, and what must be predicted."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from diagnostics import Verdict
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.settings import PrecisionName
from shadowlab.training import Trainee

ORIGIN = "# origin"  # marks the line of `inject` whose operator is the origin
Inject = Callable[[Trainee, EncodedBatch], AbstractContextManager[EncodedBatch]]


@dataclass(frozen=True)
class Forecast:
    """What the health rules must say before the fault is there."""

    layer: str
    """Where the overflow must be predicted."""
    min_lead: int = 20
    """Least number of steps from the first warning to the overflow."""
    tolerance: float = 0.25
    """By which the predicted step may be off, as a share of those steps."""

    def misses(self, warned_at: int | None, predicted_step: int | None, real_step: int | None) -> list[str]:
        """What is wrong with a warning, in words. Steps count from 1; None: none was named."""
        if warned_at is None or predicted_step is None or real_step is None:
            return [f"no warning that {self.layer} will overflow" if warned_at is None else "no overflow"]
        lead, off = real_step - warned_at, abs(predicted_step - real_step)
        late = [f"the warning came {lead} steps ahead, not {self.min_lead}"] if lead < self.min_lead else []
        allowed = self.tolerance * lead
        return late + ([f"predicted for step {predicted_step}, off by {off}"] if off > allowed else [])


@dataclass(frozen=True)
class Drill:
    """A fault that is put in on purpose, and what must be found."""

    name: str
    phase: str
    """Of the step, where the fault is born."""
    summary: str
    """One line for people."""
    reference: str
    """Public source of the cause."""
    inject: Inject
    """Puts the fault in, gives the batch to train on, and takes the fault out again."""
    expected: Mapping[str, object] | None
    """Fields of the right verdict; None where nothing must be said."""
    precision: PrecisionName = "fp32"
    num_steps: int = 1
    """Steps with the fault until it must have been found."""
    num_healthy_steps: int = 1
    """Steps before it."""
    assignments: tuple[str, ...] = field(default=())  # of configuration keys, as --set takes them
    each_step: Callable[[Trainee], None] | None = None
    """Done before each step with the fault."""
    forecast: Forecast | None = None
    """What must be predicted; None where nothing can be seen before the fault."""

    @property
    def origin(self) -> str | None:
        """`path:line` of the marked line."""
        function = inspect.unwrap(self.inject)
        lines, first = inspect.getsourcelines(function)
        number = next((first + i for i, line in enumerate(lines) if line.rstrip().endswith(ORIGIN)), None)
        return None if number is None else f"{inspect.getsourcefile(function)}:{number}"

    def to_json(self) -> dict[str, str | None]:
        about = {"name": self.name, "phase": self.phase, "summary": self.summary, "reference": self.reference}
        return about | {"injected_at": self.origin}

    def misses(self, verdict: Verdict | None) -> list[str]:
        """What a verdict has wrong, in words; empty where it names the injected place."""
        if self.expected is None or verdict is None:
            both = self.expected is None and verdict is None
            return [] if both else ["no finding" if verdict is None else f"a false alarm: {verdict.headline()}"]
        wanted = {"phase": self.phase, **self.expected} | ({"source": self.origin} if self.origin else {})
        seen = {name: getattr(verdict, name) for name in wanted}
        return [f"{name} is {seen[name]!r}, not {wanted[name]!r}" for name in wanted if seen[name] != wanted[name]]
