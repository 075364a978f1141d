"""One step of a watched loop: run once at full speed, and a second time under tracing where it tripped.

    for attempt in watch.attempts(batch=batch):
        with attempt:
            ...the step...

The `with` swallows what ended the first attempt, the `for` runs its body again, and the second attempt ends with the
error that names the origin.
"""

import threading
import warnings
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from diagnostics.errors import NonFiniteError
from diagnostics.ranks import num_ranks
from diagnostics.verdict import Verdict
from diagnostics.watching.boundary import Boundary
from diagnostics.watching.forms import ATTEMPTS
from diagnostics.watching.raised import may_be_numerical
from diagnostics.watching.replay import Replay
from diagnostics.watching.surroundings import Surroundings
from diagnostics.watching.trip import ExceptionTrip, Trip
from diagnostics.watching.watched import Watched

_ONE_AT_A_TIME = threading.RLock()  # a step is observed through functions of torch, of which there is one


class Attempt:
    """A run of the step's body, inside `with`.

    This class only runs it, which is all that a detached watch does.
    """

    result: Any
    """What the step returned: a loss, or a container whose scalars are losses. A loop that differentiates its loss
    need not set it."""

    following: "Attempt | None"
    """The attempt that comes after this one; None where the step is done."""

    error: BaseException | None
    """What the step raises in the end, where this attempt swallowed an exception."""

    was_entered: bool
    """Whether the body ran inside `with`."""

    def __init__(self) -> None:
        self.result = self.following = self.error = None
        self.was_entered = False

    def __enter__(self) -> "Attempt":
        self.was_entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return None

    def left_alone(self) -> NonFiniteError:
        """What is known of a step that tripped and was not repeated."""
        raise NotImplementedError

    def fall_back_on(self, known: Verdict) -> None:
        """What to say where a repetition does not show more."""
        raise NotImplementedError


class _Following(Attempt):
    """An attempt that follows its step by hooks."""

    def __init__(self, watched: Watched, batch: Any, index: int) -> None:
        super().__init__()
        self._watched, self._batch, self._index = watched, batch, index
        self._hooks = ExitStack()

    def __enter__(self) -> Attempt:
        _ONE_AT_A_TIME.acquire()
        try:
            if self._watched.running is not None:
                raise RuntimeError("a step inside a step of the same watch; give each loop a watch of its own")
            with ExitStack() as stack:
                stack.callback(self._end)
                self._begin(stack)
                self._hooks = stack.pop_all()
        except BaseException:
            _ONE_AT_A_TIME.release()
            raise
        return super().__enter__()

    def _begin(self, stack: ExitStack) -> None:
        """Enter what follows the step."""
        raise NotImplementedError

    def _end(self) -> None:
        self._watched.running = None  # and the copies with it


class First(_Following):
    """At full speed, with the checks of `Boundary`."""

    def __init__(self, watched: Watched, batch: Any, index: int, surroundings: Surroundings, *, is_due: bool) -> None:
        super().__init__(watched, batch, index)
        self._surroundings, self._is_due = surroundings, is_due
        self._replay: Replay | None = None

    def _begin(self, stack: ExitStack) -> None:
        watched = self._watched
        if self._is_due or watched.guarded.is_stale:
            watched.guarded.renew()
        is_accelerated = bool(self._surroundings.accelerators)
        asked = watched.contracts.hearing(self._index, self._batch, is_due=self._is_due, is_accelerated=is_accelerated)
        stack.enter_context(asked)
        self._boundary = watched.running = Boundary(
            watched.guarded,
            watched.policy,
            watched.skips,
            self._surroundings,
            adopts=watched.adopts,
            may_look=self._is_due,
            journal=watched.journal,
        )
        if watched.journal is not None:
            watched.journal.begin(self._index, is_due=self._is_due)
        for layers in watched.layer_statistics:
            stack.enter_context(layers.recording(enabled=self._is_due))
        stack.enter_context(self._boundary.watching())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            self._hooks.__exit__(kind, error, traceback)
            trip = self._trip(error)
            if trip is not None:
                self._watched.contracts.forget()
                self._prepare_repetition(trip)
            elif error is not None:
                self._watched.contracts.fail(self._index)
            else:
                self._watched.left_out.in_a_row = 0
                self._watched.guarded.note_end_of_step(self._boundary.num_stepped)
                if self._is_due:
                    self._watched.collect()
                self._watched.record(self._index, self._boundary, is_due=self._is_due)
                is_skipped = self._boundary.seen.is_skipped
                self._watched.contracts.end(self._index, self.result, is_skipped=is_skipped)
            return trip is not None
        finally:
            del self._boundary, self._batch  # a loop's variable holds the attempt
            _ONE_AT_A_TIME.release()

    def _trip(self, error: BaseException | None) -> Trip | None:
        """Why the step is to be repeated; None where it was healthy, or its exception is its own affair."""
        if error is None:
            try:
                self._boundary.after_step(self.result)
            except Trip as caught:
                return caught.with_traceback(None)
            return None
        if isinstance(error, Trip):
            return error.with_traceback(None) if error.by is self._boundary else None  # frames hold the step's graph
        # Each of several ranks knows its own exception alone; the others wait in a collective.
        if num_ranks() == 1 and may_be_numerical(error, self._watched.guarded, self._batch):
            return ExceptionTrip(error, by=self._boundary)
        return None

    def _prepare_repetition(self, trip: Trip) -> None:
        watched = self._watched
        if watched.on_trip is not None:
            watched.on_trip()
        is_undoable = self._boundary.is_undoable(trip)
        if isinstance(trip, ExceptionTrip) and not is_undoable:
            watched.policy.learn("a step raised after its optimizer had stepped")
        self._replay = Replay(trip, watched.guarded, self._boundary.undo, is_undoable=is_undoable, batch=self._batch)
        again = First(watched, self._batch, self._index, self._surroundings, is_due=self._is_due)
        self.following = Repetition(watched, self._batch, self._index, self._replay, again)
        watched.unexplained = self

    def left_alone(self) -> NonFiniteError:
        assert self._replay is not None
        error = self._replay.left_alone(self._index, self._watched.incidents)
        self._watched.layers = {}
        self._watched.record_trip(self._index, error, 1.0)
        return error

    def fall_back_on(self, known: Verdict) -> None:
        assert self._replay is not None
        self._replay.known = known


class Repetition(_Following):
    """Under tracing, from the state before the step."""

    def __init__(self, watched: Watched, batch: Any, index: int, replay: Replay, again: Attempt) -> None:
        """again: comes after this one, where the trip turns out to be no fault."""
        super().__init__(watched, batch, index)
        self._replay, self._again = replay, again

    def _begin(self, stack: ExitStack) -> None:
        watched = self._watched
        watched.running, watched.unexplained = self._replay, None
        for layers in watched.layer_statistics:
            stack.enter_context(layers.recording(is_hidden=True))
        stack.enter_context(self._replay.repeating(tolerates_scaler=not watched.skips.are_too_many))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            self._replay.result = self.result
            was_swallowed = self._hooks.__exit__(kind, error, traceback)
            if error is not None and not was_swallowed:
                return False  # an interruption, or the trip of a watch around this one
            conclusion = self._conclusion()
        finally:
            del self._replay  # with its copies; a traceback may hold this attempt
            _ONE_AT_A_TIME.release()
        if conclusion is None:  # a buffer's infinity is meant, a scaler finds its scale
            self.following = self._again
        elif isinstance(conclusion, NonFiniteError) and self._watched.left_out.bears(conclusion):
            self.result = None
        elif error is None:
            raise conclusion  # here: the body may have been left
        else:
            self.error = conclusion  # later: it is not raised while the step's own is being handled
        return error is not None

    def _conclusion(self) -> BaseException | None:
        self._watched.collect()
        self._watched.given.add(Surroundings(self._replay.unknown_generators))
        if self._replay.passes():
            return self._replay.cause
        error = self._replay.error(self._index, self._watched.incidents, self._watched.layers)
        self._watched.skips.may_ask &= self._replay.is_repeatable
        if error is not None:
            self._watched.record_trip(self._index, error, self._replay.scale)
        return error


class Attempts:
    """Iterates over the attempts of one step."""

    def __init__(self, first: Attempt, watched: Watched) -> None:
        self._next: Attempt | None = first
        self._last: Attempt | None = None
        self._watched = watched

    def __iter__(self) -> "Attempts":
        return self

    def __next__(self) -> Attempt:
        last = self._last
        if last is not None:
            if not last.was_entered:
                raise TypeError(f"the attempt was not entered; write\n{ATTEMPTS}")
            self._next = last.following
            if last.error is not None:
                raise last.error
        self._last, self._next = self._next, None
        if self._last is None:
            raise StopIteration
        return self._last

    def fall_back_on(self, known: Verdict) -> None:
        """After a trip: what the caller has found out by other means, to be said where a repetition shows no more.

        Raises:
            RuntimeError: no step has tripped.
        """
        self._tripped().fall_back_on(known)

    def give_up(self) -> NonFiniteError:
        """After a trip: the error of a step whose body cannot be run again; everything is put back.

        Raises:
            RuntimeError: no step has tripped.
        """
        tripped, self._watched.unexplained = self._tripped(), None
        return tripped.left_alone()

    def _tripped(self) -> Attempt:
        if self._last is None or self._watched.unexplained is not self._last:
            raise RuntimeError("no step has tripped that would have to be repeated")
        return self._last

    def __enter__(self) -> None:
        raise TypeError(f"watch.attempts() is no context manager; write\n{ATTEMPTS}")

    def __exit__(self, *_: object) -> None: ...

    def __del__(self) -> None:
        if self._last is not None and self._watched.unexplained is self._last:
            warnings.warn(
                "a watched step met a value that is not finite as its body was left by break or return: it is undone, "
                "and the watch's next step raises what is known of it",
                RuntimeWarning,
                stacklevel=2,
            )
