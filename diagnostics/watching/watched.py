"""What the steps of one watch share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diagnostics.errors import NonFiniteError
from diagnostics.statistics import LayerStatistics, TensorStatistics
from diagnostics.watching.boundary import Boundary
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.journal import Journal
from diagnostics.watching.kept_contracts import KeptContracts
from diagnostics.watching.left_out import LeftOut
from diagnostics.watching.policy import Policy
from diagnostics.watching.replay import Replay
from diagnostics.watching.skips import Skips
from diagnostics.watching.surroundings import Surroundings

if TYPE_CHECKING:
    from diagnostics.watching.attempts import Attempt


@dataclass
class Watched:
    """What the steps of one watch share."""

    guarded: Guarded
    policy: Policy
    skips: Skips
    left_out: LeftOut
    layer_statistics: list[LayerStatistics]
    adopts: bool
    """Optimizers that step are guarded from then on."""
    incidents: Path | None
    given: Surroundings
    """Generators and an accelerator that the caller named, and what steps have shown."""
    contracts: KeptContracts
    on_trip: Callable[[], None] | None = None
    layers: dict[str, dict[str, TensorStatistics]] = field(default_factory=dict)
    running: Boundary | Replay | None = None
    """What follows the step that is running."""
    unexplained: "Attempt | None" = None
    """One that tripped and was not repeated yet."""
    journal: Journal | None = None
    """Writes records, where that was asked for."""

    def record(self, index: int, boundary: Boundary, *, is_due: bool) -> None:
        """A healthy step has ended."""
        if self.journal is None:
            return
        scale = boundary.undo.scale if is_due and boundary.undo.scaler_now() is not None else None
        layers = self.layers if is_due else {}
        self.journal.end(index, boundary.seen, self.skips.total, layers, scale)

    def record_trip(self, index: int, error: NonFiniteError, scale: float) -> None:
        """A step has met a value that is not finite."""
        if self.journal is not None:
            self.journal.trip(index, error, self.layers, scale)

    def collect(self) -> None:
        """Statistics of the step that was just recorded."""
        self.layers = {name: parts for layers in self.layer_statistics for name, parts in layers.collect().items()}

    def raise_unexplained(self) -> None:
        """Raise what is known of a step whose body was left early, unless the loop goes on without it."""
        attempt, self.unexplained = self.unexplained, None
        error = None if attempt is None else attempt.left_alone()
        if error is not None and not self.left_out.bears(error):
            raise error
