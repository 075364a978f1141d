"""What is kept of the moment before one step, so that the step can be repeated and undone."""

import torch
from torch import Tensor, nn

from diagnostics.tensors import any_bad, values_of
from diagnostics.watching.first_writes import FirstWrites
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.snapshot import OptimizerState, Randomness, ScalerState


class Undo:
    """Buffers, randomness and the gradient scaler are always kept; what an optimizer changes where `copy` was asked."""

    def __init__(self, guarded: Guarded) -> None:
        self.randomness = Randomness()
        self._guarded = guarded
        self._versions = guarded.versions()
        self._state: OptimizerState | None = None
        self._scaler: ScalerState | None = None
        self._bad_gradients: list[tuple[nn.Parameter, Tensor]] = []
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
            self._state = self._guarded.copy()

    def keep_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """As it is now; the step has not used it yet."""
        self._scaler = ScalerState(scaler)

    def keep_bad_gradients(self) -> None:
        """Gradients that are not finite now; the step may add to them. Reads on the host."""
        self._bad_gradients = self._guarded.bad_gradients()

    def first_writes(self) -> FirstWrites:
        """A guard of the parameters that no copy is kept of, to be switched on where the step may write to them."""
        unguarded = self._guarded.unguarded()
        guard = FirstWrites(unguarded, copied=[id(p) for p in unguarded if self._has_copy(p)])
        self._first_writes.append(guard)
        return guard

    # Questions

    def written(self, among: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of these parameters that operators wrote to since the step began."""
        return [p for p in among if p._version != self._versions.get(id(p), p._version)]

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
        in_state = self._state is not None and self._state.holds(parameter)
        return in_state or any(guard.guards(parameter) for guard in self._first_writes)

    # Putting back

    def restore(self) -> None:
        """Put back all that is kept. Gradients are dropped."""
        self.randomness.restore()
        self._guarded.buffers.restore()
        for guard in self._first_writes:  # first: a parameter gets its own memory back, then its values
            guard.restore()
        if self._state is not None:
            self._state.restore()
        if self._scaler is not None:
            self._scaler.restore()
        self._guarded.clear_gradients()

    def restore_bad_gradients(self) -> None:
        """Put back what `keep_bad_gradients` found."""
        for parameter, gradient in self._bad_gradients:
            parameter.grad = gradient
