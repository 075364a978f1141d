"""One drill: what goes wrong, who met it first, and what the verdict must say."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from diagnostics import Verdict
from shadowlab.config import PrecisionName
from shadowlab.task import EncodedBatch
from shadowlab.training.trainee import Trainee

ORIGIN = "# origin"  # marks the line of `inject` whose operator is the origin
Inject = Callable[[Trainee, EncodedBatch], AbstractContextManager[EncodedBatch]]


@dataclass(frozen=True)
class Drill:
    """inject: puts the fault in, gives the batch to train on, and takes the fault out again.

    expected: fields of the right verdict; None where nothing must be said. reference: public source of the cause.
    num_steps: steps with the fault until it must have been found.
    """

    name: str
    phase: str
    summary: str
    reference: str
    inject: Inject
    expected: Mapping[str, object] | None
    precision: PrecisionName = "fp32"
    num_steps: int = 1
    num_healthy_steps: int = 1
    assignments: tuple[str, ...] = field(default=())  # of configuration keys, as --set takes them

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
