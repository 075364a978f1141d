"""What is kept of the moment before one step, so that the step can be repeated and undone."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from diagnostics.tensors import any_bad, values_of
from diagnostics.watching.bookkeeping import Bookkeeping
from diagnostics.watching.first_writes import FirstWrites
from diagnostics.watching.gradients import Gradients
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.snapshot import OptimizerState, Randomness, ScalerState
from diagnostics.watching.surroundings import Surroundings


class Undo:
    """Buffers, randomness and the gradient scaler are always kept; what an optimizer changes where `copy` was asked."""

    optimizer_was_asked: bool
    """Whether an optimizer was asked to step."""

    def __init__(self, guarded: Guarded, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.optimizer_was_asked = False
        self.randomness = Randomness(surroundings.generators)
        self._bookkeeping = Bookkeeping(surroundings.accelerators, (*guarded.averages, *guarded.safe_averages))
        self._guarded = guarded
        self.versions = guarded.versions()
        self._state: OptimizerState | None = None
        self._others: OptimizerState | None = None
        self._scaler: ScalerState | None = None
        self.gradients = Gradients(guarded)
        self._first_writes: list[FirstWrites] = []
        guarded.buffers.take()

    # Keeping

    @property
    def has_copies(self) -> bool:
        """Whether `copy` was asked for."""
        return self._state is not None

    def copy(self, *, again: bool = False) -> None:
        """Keep copies of what the step changes; `again` where it has changed nothing yet and more is known of it."""
        if again:
            self._state = None  # before the next one takes as much memory
        if self._state is None:
            self._state = self._guarded.copy(others=self._others is None)

    def copy_others(self) -> None:
        """Keep copies of what a step is known to write to other than by an optimizer, and of nothing else. At the
        step's beginning: it may write to it long before an optimizer moves."""
        if self._guarded.others:
            self._others = OptimizerState([], self._guarded.others)

    def keep_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """As it is now; the step has not used it yet."""
        self._scaler = ScalerState(scaler)

    def scaler_now(self) -> ScalerState | None:
        """The gradient scaler that was kept, as it is now; None without one."""
        return None if self._scaler is None else ScalerState(self._scaler.scaler)

    def bookkeeping_now(self) -> Bookkeeping:
        """What trainers have counted until now, of all that was kept."""
        return self._bookkeeping.again()

    @property
    def scale(self) -> float:
        """Of the gradient scaler before the step; 1 without one, and before it has one."""
        return 1.0 if self._scaler is None else self._scaler.scale

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep gradients, schedulers and averages right before the step that runs inside changes them."""
        with self.gradients.before_changes(), self._bookkeeping.before_changes(lambda: self.has_copies):
            yield

    def first_writes(self) -> FirstWrites:
        """A guard of the parameters that no copy is kept of, to be switched on where the step may write to them."""
        me = weakref.ref(self)  # a cycle would hold the copies until Python next looks for cycles

        def has_copy(parameter: nn.Parameter) -> bool:
            undo = me()
            return undo is not None and undo._in_copies(parameter)

        guard = FirstWrites(self._guarded.unguarded(), has_copy)
        self._first_writes.append(guard)
        return guard

    # Questions

    def written(self, among: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of these parameters that operators wrote to since the step began."""
        return self._guarded.written_since(self.versions, among)

    def written_first(self) -> list[nn.Parameter]:
        """Parameters that a guard of first writes saw change."""
        return [p for guard in self._first_writes for p in guard.written()]

    def is_complete(self, *, moved: bool) -> bool:
        """Whether what is kept puts back all that the step has changed. Reads on the host.

        Args:
            moved: the step came as far as changing parameters.
        """
        if moved and self._state is None:
            return False
        unkept = [p for p in self._guarded.parameters if not self._has_copy(p)]
        return not self.written(unkept) and not (moved and any_bad(values_of(unkept)))

    def _has_copy(self, parameter: nn.Parameter) -> bool:
        return self._in_copies(parameter) or any(guard.guards(parameter) for guard in self._first_writes)

    def _in_copies(self, parameter: nn.Parameter) -> bool:
        return any(kept is not None and kept.holds(parameter) for kept in (self._others, self._state))

    # Putting back

    def restore(self) -> None:
        """Put back all that is kept, gradients from before the step included; other gradients are dropped."""
        self.randomness.restore()
        self._bookkeeping.restore()
        self._guarded.buffers.restore()
        for guard in self._first_writes:  # first: a parameter gets its own memory back, then its values
            guard.restore()
        if self._state is not None:
            self._state.restore()
        if self._others is not None:  # last: these copies are older
            self._others.restore()
        if self._scaler is not None:
            self._scaler.restore()
        self.gradients.restore()
