"""The contracts of one watched loop: hears its steps, asks its families, keeps what they find."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diagnostics.contracts.calls import heard
from diagnostics.contracts.data import Data
from diagnostics.contracts.family import Family, Make, Reports
from diagnostics.contracts.graph import Terms
from diagnostics.contracts.idle import Idle, Rates
from diagnostics.contracts.metric import Metrics
from diagnostics.contracts.modes import Modes
from diagnostics.contracts.motion import Motion
from diagnostics.contracts.order import Order
from diagnostics.contracts.ownership import Ownership
from diagnostics.contracts.ranks import Ranks
from diagnostics.contracts.scene import Scene, Step
from diagnostics.health import Finding
from diagnostics.modules import in_backward

_FAMILIES: tuple[Make, ...] = (Ownership, Motion, Terms, Order, Idle, Rates, Modes, Data, Ranks)


class Contracts:
    """Of one loop. A step runs inside `hearing`, and `end` or `forget` follows it.

    Reads nothing on the host but in the first steps and in steps that are due, and changes nothing.
    """

    def __init__(self, models: list[nn.Module], optimizers: list[Any], *, are_given: bool) -> None:
        """models, optimizers: the watch's own lists; it may add to the second. are_given: by the caller."""
        scene = Scene(models, optimizers, are_given)
        self._reports = Reports()
        self._metrics = Metrics(scene, self._reports)
        self._families: list[Family] = [make(scene, self._reports) for make in _FAMILIES]
        self._scene = scene
        self._step: Step | None = None
        self._last: Step | None = None
        weakref.finalize(self, _detach, self._families)

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each thing once."""
        return self._reports.found

    def take_new(self) -> list[Finding]:
        """What was found since the last call."""
        return self._reports.take_new()

    def add_metric(self, name: str, value: float, *, higher_is_better: bool | None, kept: bool) -> None:
        """As `Watch.metric`."""
        self._metrics.add(self._last or Step(0, False), name, value, higher_is_better=higher_is_better, kept=kept)

    # A step

    @contextmanager
    def hearing(self, index: int, batch: Any, *, is_due: bool) -> Iterator[None]:
        """A step runs inside; `index` is 0-based."""
        step = self._step = Step(index, is_due, batch)
        for family in self._families:
            family.begin(step)
        with heard(self, self._scene.bare_optimizers()):
            yield

    def end(self, result: Any, *, is_skipped: bool) -> None:
        """The step has ended well, and returned `result`."""
        step, self._step = self._step, None
        if step is None:
            return
        step.result, step.is_skipped = result, is_skipped
        for family in self._families:
            family.end(step)
        step.result = step.batch = None
        self._last = Step(step.index, step.is_due)

    def forget(self) -> None:
        """The step was undone, or ended in an error."""
        self._step = None
        for family in self._families:
            family.forget()

    def detach(self) -> None:
        """Leave no trace; the next step begins anew."""
        self.forget()
        _detach(self._families)

    # What the step calls (see `calls.Listener`)

    def before_backward(self, roots: list[Tensor]) -> None:
        if self._step is not None and not in_backward():
            self._step.num_backward += 1
            for family in self._families:
                family.before_backward(self._step, roots)

    def after_backward(self) -> None:
        if self._step is not None and not in_backward():
            for family in self._families:
                family.after_backward(self._step)

    def after_clear(self, owner: Any) -> None:
        if self._step is not None:
            for family in self._families:
                family.after_clear(self._step, owner)

    def on_scaler(self, scaler: Any, call: str, optimizer: Any) -> None:
        if self._step is not None:
            for family in self._families:
                family.on_scaler(self._step, scaler, call, optimizer)

    def on_clip(self, parameters: list[Tensor], limit: float) -> None:
        if self._step is not None:
            for family in self._families:
                family.on_clip(self._step, parameters, limit)

    def before_optimizer(self, optimizer: Any, has_closure: bool) -> None:
        if self._step is not None:
            for family in self._families:
                family.before_optimizer(self._step, optimizer, has_closure=has_closure)

    def after_optimizer(self, optimizer: Any, has_closure: bool) -> None:
        if self._step is not None:
            self._step.num_optimizer_steps += self._scene.concerns(optimizer)
            for family in self._families:
                family.after_optimizer(self._step, optimizer, has_closure=has_closure)


def _detach(families: list[Family]) -> None:
    for family in families:
        family.detach()
