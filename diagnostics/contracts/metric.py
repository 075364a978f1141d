"""Results by which a loop chooses its best checkpoint."""

import weakref
from dataclasses import dataclass
from typing import Any

from diagnostics.contracts.directions import direction_of
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.plateaus import PLATEAUS
from diagnostics.contracts.scene import Scene, Step, bare


@dataclass
class _Results:
    higher_is_better: bool | None
    best: float | None = None
    """Of those that were kept."""


class Metrics(Family):
    """What is kept as the best is the best."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._results: dict[str, _Results] = {}
        self._last = Step(0, False)

    def begin(self, step: Step) -> None:
        self._last = Step(step.index, False)
        own = weakref.ref(self)

        def heard(scheduler: Any, names: list[str]) -> None:
            metrics = own()
            if metrics is not None and metrics.scene.concerns(bare(scheduler.optimizer)):
                metrics._check_plateau(scheduler, names)

        PLATEAUS.listen(self, heard)

    def detach(self) -> None:
        PLATEAUS.forget(self)

    def _check_plateau(self, scheduler: Any, names: list[str]) -> None:
        meant = {name: direction_of(name) for name in names}
        if len(set(meant.values()) - {None}) == 1:
            name = next(name for name, one in meant.items() if one is not None)
            by = f"ReduceLROnPlateau(mode={scheduler.mode!r})"
            self.add_choice(self._last, name, higher_is_better=scheduler.mode == "max", by=by)

    def add(self, step: Step, name: str, value: float, *, higher_is_better: bool | None, kept: bool) -> None:
        """A result.

        Args:
            higher_is_better: None: as the metric's name says, if it does.
            kept: whether the loop took it for the best so far.
        """
        known = self._results.setdefault(name, _Results(direction_of(name)))
        if higher_is_better is not None:
            known.higher_is_better = higher_is_better
        if known.higher_is_better is None or value != value:
            return
        is_better = known.best is None or (value > known.best if known.higher_is_better else value < known.best)
        direction = "higher" if known.higher_is_better else "lower"
        if known.best is not None and kept and not is_better and value != known.best:
            evidence = f"{value:.6g} is kept as the best after {known.best:.6g}, and {direction} is better"
            self.broken("metric-direction", step, evidence, subject=name)
        if known.best is not None and not kept and is_better:
            evidence = f"{value:.6g} is not kept after {known.best:.6g}, though {direction} is better"
            self.broken("metric-direction", step, evidence, subject=name)
        if kept:
            known.best = value

    def add_choice(self, step: Step, name: str, *, higher_is_better: bool, by: str) -> None:
        """Something chooses by this metric; by: its name."""
        meant = direction_of(name)
        if meant is not None and meant != higher_is_better:
            words = ("lower", "higher")
            evidence = f"{by} takes a {words[higher_is_better]} {name} for the better, and {words[meant]} is"
            self.broken("metric-direction", step, evidence, subject=f"{by}: {name}")
