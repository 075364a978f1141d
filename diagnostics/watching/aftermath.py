"""What an exception left of a step, kept while the step is repeated: an exception that passes leaves it so."""

from diagnostics.watching.copies import Copies
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.snapshot import Randomness
from diagnostics.watching.undo import Undo


class Aftermath:
    """Copies of what `Undo.restore` and a repetition change, as it is now."""

    def __init__(self, guarded: Guarded, undo: Undo) -> None:
        self._guarded = guarded
        self._randomness = Randomness(undo.surroundings.generators)
        self._bookkeeping = undo.bookkeeping_now()
        self._state = guarded.copy()
        self._gradients = [(parameter, parameter.grad) for parameter in guarded.parameters]
        self._others = Copies()
        self._others.add(guarded.all_buffers())
        self._others.add(undo.written_first())
        self._scaler = undo.scaler_now()
        self._others.add([gradient for _, gradient in self._gradients if gradient is not None])

    def restore(self) -> None:
        self._randomness.restore()
        self._bookkeeping.restore()
        self._state.restore()
        self._others.restore()
        if self._scaler is not None:
            self._scaler.restore()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
