"""A step that tripped is repeated from the state before it, under tracing; its origin becomes the error to raise."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diagnostics.errors import NonFiniteError
from diagnostics.incidents import write_incident
from diagnostics.ranks import agreed, on_any, rank
from diagnostics.tracing import Explanation
from diagnostics.verdict import Verdict
from diagnostics.watching.boundary import BufferTrip, Trip
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.observation import before_each_step
from diagnostics.watching.undo import Undo

_SUSPECTS = (
    "the same step was finite when it was repeated: suspect a race (an asynchronous copy), memory that is "
    "read before it is written, a batch that the step takes from an iterator, gradients that were there before "
    "the step, a nondeterministic kernel, a compiled one (it was repeated eagerly: try without torch.compile), "
    "or the hardware (torchtitan#951)"
)


class StopReplay(BaseException):
    """Ends the repetition of a step before an optimizer step that could not be undone."""


class Replay:
    """Of one step. The caller runs the step again inside `repeating`, in whatever form it has it."""

    def __init__(self, trip: Trip, guarded: Guarded, undo: Undo, *, is_undoable: bool, batch: Any) -> None:
        """Puts back the state before the step.

        Args:
            is_undoable: whether `undo` puts back all that the step has changed. batch: names the step's tensors.
        """
        self._trip, self._guarded, self._undo = trip, guarded, undo
        self._is_undoable, self._batch = is_undoable, batch
        self._bad_buffers = guarded.buffers.bad()
        if not is_undoable:
            undo.copy()  # the repetition starts from here, and comes back
        undo.restore()
        undo.restore_bad_gradients()
        self._explanation = Explanation(guarded.models, guarded.optimizers, batch)
        self._failure = ""

    def note(self, loss: float, grad_norm: float) -> None:
        """The loop has read its loss and gradient norm; after one that is not finite it has nothing more to show."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise StopReplay

    @contextmanager
    def repeating(self, *, tolerates_scaler: bool) -> Iterator[Explanation]:
        """Run the step inside, by what is yielded. Afterwards everything is as before the step once more.

        An exception of the step is kept for the error's text: the finding must not be lost to it.

        Args:
            tolerates_scaler: whether a gradient scaler's overflows are how it finds its scale.
        """
        self._explanation.tolerates_scaler = tolerates_scaler
        guard = self._undo.first_writes()
        try:
            with ExitStack() as stack:
                if not self._undo.has_copies:  # what the optimizer does could not be undone
                    stack.enter_context(before_each_step(self._guarded.bare_optimizers(), _stop))
                stack.callback(guard.stop)
                guard.resume()
                yield self._explanation
        except Exception as error:
            text = str(error).partition("\n")[0]
            self._failure = f"; the replay ended with {type(error).__name__}: {text}"
        finally:
            self._undo.restore()

    def error(self, found: Verdict | None, index: int, incidents: Path | None) -> NonFiniteError | None:
        """The error to raise, its incident written; None where a buffer's infinity turned out to be meant.

        Args:
            found: what the repetition has shown. index: 0-based number of the step. incidents: where to write.
        """
        if self._shows_meant_infinity(found):
            return None
        own = None if found is None else replace(found, reproducible=True)
        verdict = replace(agreed(own) or self._unexplained(), step=index)
        folder, note = self._evidence(verdict, incidents)
        self._explanation.forget()
        return NonFiniteError(verdict, folder, is_restored=self._is_undoable, note=note)

    def _shows_meant_infinity(self, found: Verdict | None) -> bool:
        if not isinstance(self._trip, BufferTrip) or on_any(found is not None or bool(self._failure)):
            return False
        has_nan = any(bool(torch.isnan(tensor).any()) for tensor in self._bad_buffers.values())
        is_meant = on_any(bool(self._bad_buffers)) and not on_any(has_nan)
        if is_meant:
            self._guarded.buffers.tolerate_infinity(set(self._bad_buffers))
        return is_meant

    def _unexplained(self) -> Verdict:
        return Verdict(
            phase=self._trip.phase,
            exception=None,
            cause="unknown",
            witness={"seen": self._trip.text + self._failure},
            fix="let the step be callable twice: it must not consume its batch" if self._failure else _SUSPECTS,
            reproducible=None if self._failure else False,
        )

    def _evidence(self, verdict: Verdict, incidents: Path | None) -> tuple[Path | None, str]:
        """Folder with the evidence; without one, why it could not be written, "" where none was asked for."""
        if incidents is None or verdict.rank not in (None, rank()):
            return None, ""
        try:
            folder = write_incident(
                incidents,
                verdict,
                culprit=self._explanation.culprit,
                batch=self._batch,
                randomness=self._undo.randomness.tensors(),
            )
        except OSError as error:
            return None, f"{incidents}: no evidence could be written ({error.strerror or error})"
        return folder, ""


def _stop(optimizer: Any, arguments: list[Any]) -> None:
    if not any(callable(value) for value in arguments):
        raise StopReplay
    for i, value in enumerate(arguments):
        if callable(value):
            arguments[i] = _stopped(value)


def _stopped(closure: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        closure()
        raise StopReplay

    return run
