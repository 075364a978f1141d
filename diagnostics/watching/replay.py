"""A step that tripped is repeated from the state before it, under tracing; its origin becomes the error to raise."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diagnostics.errors import NonFiniteError
from diagnostics.incidents import write_incident
from diagnostics.patching import is_closure
from diagnostics.ranks import agreed, on_any, rank
from diagnostics.statistics import TensorStatistics, recorded_layers
from diagnostics.tracing import Explanation
from diagnostics.verdict import Verdict
from diagnostics.watching.aftermath import Aftermath
from diagnostics.watching.buffers import has_nan
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.observation import before_each_step
from diagnostics.watching.outside import with_optimizer
from diagnostics.watching.trip import BufferTrip, ExceptionTrip, SkipTrip, Trip
from diagnostics.watching.undo import Undo
from diagnostics.watching.unexplained import Clues, not_repeated, not_reproduced


class StopReplay(BaseException):
    """Ends the repetition of a step before an optimizer step that could not be undone."""


class Replay:
    """Of one step. The caller runs the step again inside `repeating`, in whatever form it has it."""

    result: Any
    """What the repeated step returned."""

    known: Verdict | None
    """What to say where the repetition shows nothing; None: what the trip showed."""

    is_repeatable: bool
    """Whether the repetition came to its end, where it showed no fault."""

    def __init__(self, trip: Trip, guarded: Guarded, undo: Undo, *, is_undoable: bool, batch: Any) -> None:
        """Puts back the state before the step.

        Args:
            is_undoable: whether `undo` puts back all that the step has changed. batch: names the step's tensors.
        """
        self._trip, self._guarded, self._undo = trip, guarded, undo
        self._is_undoable, self._batch = is_undoable, batch
        self._bad_buffers = guarded.buffers.bad()
        self._aftermath = Aftermath(guarded, undo) if isinstance(trip, ExceptionTrip) else None
        if not is_undoable:
            undo.copy()  # the repetition starts from here, and comes back
        undo.restore()
        self._explanation = Explanation(guarded.models, guarded.optimizers, batch)
        self._found: Verdict | None = None
        self._failure: BaseException | None = None
        self._optimizer_was_asked = False
        self.result, self.known, self.is_repeatable = None, None, True

    @property
    def scale(self) -> float:
        """The gradient scaler's before the step; 1 without one."""
        return self._undo.scale

    def note(self, loss: float, grad_norm: float) -> None:
        """The loop has read its loss and gradient norm; after one that is not finite it has nothing more to show."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise StopReplay

    @contextmanager
    def repeating(self, *, tolerates_scaler: bool) -> Iterator[None]:
        """Run the step inside, and draw the conclusion. Afterwards everything is as before the step once more.

        An exception of the step ends here: the finding must not be lost to it.

        Args:
            tolerates_scaler: whether a gradient scaler's overflows are how it finds its scale.
        """
        self._explanation.tolerates_scaler = tolerates_scaler
        guard = self._undo.first_writes()
        try:
            with ExitStack() as stack:
                stack.enter_context(before_each_step(self._guarded.bare_optimizers(), self._before_optimizer))
                stack.callback(guard.stop)
                guard.resume()
                try:
                    with self._explanation.tracing(StopReplay):
                        yield
                except (Exception, SystemExit) as error:
                    self._failure = error
            self._found = self._explanation.verdict(self.result, self._failure)
        finally:
            self._undo.restore()

    def _before_optimizer(self, optimizer: Any, arguments: list[Any]) -> None:
        self._optimizer_was_asked = True
        if not self._undo.has_copies:  # what it does could not be undone
            _stop(optimizer, arguments)

    # Afterwards

    @property
    def unknown_generators(self) -> list[torch.Generator]:
        """Those that operators took and nobody had put back."""
        known = {id(generator) for generator in self._undo.surroundings.generators}
        shared = (torch.default_generator, *torch.cuda.default_generators)
        known |= {id(generator) for generator in shared}
        return [generator for generator in self._explanation.generators if id(generator) not in known]

    @property
    def cause(self) -> BaseException | None:
        """The step's own exception, where that was the trip."""
        return self._trip.cause if isinstance(self._trip, ExceptionTrip) else None

    def passes(self) -> bool:
        """Whether the step's own exception has nothing to do with a non-finite value. Then all is as it left it."""
        if self._aftermath is None or self._found is not None:
            return False
        self._aftermath.restore()
        self._explanation.forget()
        return True

    def error(
        self, index: int, incidents: Path | None, layers: Mapping[str, Mapping[str, TensorStatistics]]
    ) -> NonFiniteError | None:
        """The error to raise, its incident written; None where a buffer's infinity turned out to be meant.

        Args:
            index: 0-based number of the step. incidents: where to write. layers: their statistics in the repetition.
        """
        if self._shows_meant_infinity() or self._shows_calibration():
            return None
        own = None if self._found is None else replace(self._with_optimizer(self._found), reproducible=True)
        return self._error(agreed(own) or self._unexplained(), index, incidents, layers)

    def _with_optimizer(self, found: Verdict) -> Verdict:
        """What an optimizer outside of the watched step has to do with it."""
        if not self._guarded.steps_outside:
            return found
        return with_optimizer(found, self._explanation.parameters, self._guarded.optimizers)

    def left_alone(self, index: int, incidents: Path | None) -> NonFiniteError:
        """The error to raise where the step was not repeated, for its body was left."""
        verdict = self.known or not_repeated(self._trip.phase, self._trip.text)
        return self._error(verdict, index, incidents, {})

    def _error(
        self,
        verdict: Verdict,
        index: int,
        incidents: Path | None,
        layers: Mapping[str, Mapping[str, TensorStatistics]],
    ) -> NonFiniteError:
        verdict = replace(verdict, step=index)
        folder, note = self._evidence(verdict, incidents, layers)
        self._explanation.forget()
        error = NonFiniteError(
            verdict,
            folder,
            is_restored=self._is_undoable,
            has_gradients=self._undo.gradients.are_kept,
            note=note,
        )
        error.__cause__ = self.cause
        return error

    def _shows_calibration(self) -> bool:
        """Whether a gradient scaler left the step out for an overflow that a smaller scale cures."""
        if not isinstance(self._trip, SkipTrip) or on_any(self._found is not None):
            return False
        self.is_repeatable = not on_any(self._failure is not None)
        self._explanation.forget()
        return True

    def _shows_meant_infinity(self) -> bool:
        if not isinstance(self._trip, BufferTrip) or on_any(bool(self._found or self._failure)):
            return False
        is_undefined = any(bool(has_nan(tensor)) for tensor in self._bad_buffers.values())
        is_meant = on_any(bool(self._bad_buffers)) and not on_any(is_undefined)
        if is_meant:
            self._guarded.buffers.tolerate_infinity(set(self._bad_buffers))
        return is_meant

    def _unexplained(self) -> Verdict:
        if self.known is not None:
            return self.known
        undo = self._undo
        clues = Clues(
            iterators=undo.surroundings.iterators,
            generators=self.unknown_generators,
            optimizer_was_asked=(undo.optimizer_was_asked, self._optimizer_was_asked),
            gradients_were_changed=undo.gradients.were_changed,
            models=self._guarded.models,
        )
        return not_reproduced(self._trip.phase, self._trip.text, self._failure, clues)

    def _evidence(
        self, verdict: Verdict, incidents: Path | None, layers: Mapping[str, Mapping[str, TensorStatistics]]
    ) -> tuple[Path | None, str]:
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
                layers=recorded_layers(layers, self._undo.scale),
            )
        except OSError as error:
            return None, f"{incidents}: no evidence could be written ({error.strerror or error})"
        return folder, ""


def _stop(optimizer: Any, arguments: list[Any]) -> None:
    if not any(is_closure(value) for value in arguments):
        raise StopReplay
    for i, value in enumerate(arguments):
        if is_closure(value):
            arguments[i] = _stopped(value)


def _stopped(closure: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        closure()
        raise StopReplay

    return run
