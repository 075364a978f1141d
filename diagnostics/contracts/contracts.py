"""The contracts of one watched loop: hears its steps, asks its families, keeps what they find."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from diagnostics.contracts.averages import Averages
from diagnostics.contracts.best import Best
from diagnostics.contracts.calls import Clip, heard
from diagnostics.contracts.data import Data
from diagnostics.contracts.draws import Draws
from diagnostics.contracts.family import LOG, Family, Make, Reports
from diagnostics.contracts.frozen import Statistics
from diagnostics.contracts.graph import Terms
from diagnostics.contracts.idle import Idle, Rates
from diagnostics.contracts.influence import Influence
from diagnostics.contracts.metric import Metrics
from diagnostics.contracts.modes import Modes
from diagnostics.contracts.motion import Motion
from diagnostics.contracts.order import Order
from diagnostics.contracts.ownership import Ownership
from diagnostics.contracts.ranks import Ranks
from diagnostics.contracts.scene import Scene, Step
from diagnostics.health import Finding
from diagnostics.modules import in_backward

_FAMILIES: tuple[Make, ...] = (
    Ownership,
    Motion,
    Averages,
    Statistics,
    Terms,
    Influence,
    Order,
    Idle,
    Rates,
    Modes,
    Data,
    Draws,
    Best,
    Ranks,
)


class Contracts:
    """Of one loop. A step runs inside `hearing`, and `end` or `forget` follows it.

    Reads nothing on the host but in the first steps and in steps that are due, and changes nothing.
    """

    lost: list[Exception]
    """Why families are asked no more."""

    def __init__(self, models: list[nn.Module], optimizers: list[Any], *, are_given: bool) -> None:
        """models, optimizers: the watch's own lists; it may add to the second. are_given: by the caller."""
        scene = Scene(models, optimizers, are_given)
        self._reports = Reports()
        self._metrics = Metrics(scene, self._reports)
        self._families: list[Family] = [self._metrics, *(make(scene, self._reports) for make in _FAMILIES)]
        self._scene = scene
        self.lost = []
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

    def add_choice(self, name: str, *, higher_is_better: bool, by: str) -> None:
        """A host keeps or stops by this metric's highest, or lowest, value."""
        self._metrics.add_choice(self._last or Step(0, False), name, higher_is_better=higher_is_better, by=by)

    # A step

    @contextmanager
    def hearing(self, index: int, batch: Any, *, is_due: bool, is_accelerated: bool = False) -> Iterator[None]:
        """A step runs inside; `index` is 0-based; is_accelerated: by an Accelerator that is known."""
        self._step = Step(index, is_due, batch, is_accelerated=is_accelerated)
        self._ask(lambda family, step: family.begin(step))
        with ExitStack() as stack:
            stack.enter_context(heard(self, self._scene.bare_optimizers()))
            for family in self._families:
                stack.enter_context(family.around(self._step))
            yield

    def end(self, result: Any, *, is_skipped: bool) -> None:
        """The step has ended well, and returned `result`."""
        step = self._step
        if step is None:
            return
        step.result, step.is_skipped = result, is_skipped
        self._ask(lambda family, step: family.end(step))
        self._step, self._last = None, Step(step.index, step.is_due)

    def forget(self) -> None:
        """The step was undone, or ended in an error."""
        self._step = None
        for family in self._families:
            family.forget()

    def detach(self) -> None:
        """Leave no trace; the next step begins anew."""
        self.forget()
        _detach(self._families)

    def _ask(self, question: Callable[[Family, Step], None]) -> None:
        """A loop does not end because a question cannot be asked of it: its family is asked no more, and that is
        logged. What ranks decide together is not left out on one of them."""
        if self._step is None:
            return
        for family in list(self._families):
            try:
                question(family, self._step)
            except Exception as error:
                if isinstance(family, Ranks):
                    raise
                self.lost.append(error)
                self._families.remove(family)
                family.detach()
                kind, text = type(family).__name__, f"{type(error).__name__}: {error}"
                LOG.error("the contracts of %s are asked no more, the watch goes on: %s", kind.lower(), text)

    # What the step calls (see `calls.Listener`)

    def before_backward(self, roots: list[Tensor]) -> None:
        """roots: of any shape."""
        if self._step is not None and not in_backward():
            self._step.num_backward += 1
            self._ask(lambda family, step: family.before_backward(step, roots))

    def after_backward(self) -> None:
        if not in_backward():
            self._ask(lambda family, step: family.after_backward(step))

    def after_clear(self, owner: Any) -> None:
        self._ask(lambda family, step: family.after_clear(step, owner))

    def after_scale(self, scaled: list[Tensor]) -> None:
        """scaled: losses of any shape."""
        self._ask(lambda family, step: family.after_scale(step, scaled))

    def on_scaler(self, scaler: Any, call: str, optimizer: Any) -> None:
        self._ask(lambda family, step: family.on_scaler(step, scaler, call, optimizer))

    def on_clip(self, clip: Clip) -> None:
        self._ask(lambda family, step: family.on_clip(step, clip))

    def before_optimizer(self, optimizer: Any, has_closure: bool) -> None:
        self._ask(lambda family, step: family.before_optimizer(step, optimizer, has_closure=has_closure))

    def before_closure(self, optimizer: Any) -> None:
        self._ask(lambda family, step: family.before_closure(step, optimizer))

    def after_optimizer(self, optimizer: Any, has_closure: bool) -> None:
        if self._step is not None:
            self._step.num_optimizer_steps += self._scene.concerns(optimizer)
        self._ask(lambda family, step: family.after_optimizer(step, optimizer, has_closure=has_closure))


def _detach(families: list[Family]) -> None:
    for family in families:
        family.detach()
