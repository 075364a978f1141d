"""Events that may be an origin are judged, and kept for their reproduction, while their operands are in memory."""

from dataclasses import dataclass

from diagnostics.tracing.bad_values import BadValues
from diagnostics.tracing.calls import OperatorCall
from diagnostics.tracing.judgement import Judgement, judge
from diagnostics.tracing.making import UNKNOWN, Making, making_of
from diagnostics.tracing.operators import operator
from diagnostics.tracing.recomputation import Recorder
from diagnostics.tracing.step_context import Place

_JUDGED = 512  # operators
_FOLLOWED = 16  # of them, whose zeros are followed back: one bad step of an optimizer has hundreds
_KEPT_BYTES = 256 * 2**20  # of operands that are kept for the call that turns out to be the origin


@dataclass(frozen=True)
class Examination:
    """What recomputation says of an event."""

    judgement: Judgement | None = None
    """None of what is no birth, and of a birth after very many."""
    call: OperatorCall | None = None
    """With the operands as they were before it, to be run again; None where they are too large, or not torch's."""
    making: Making = UNKNOWN
    """What the operand is that it failed at."""


NOT_EXAMINED = Examination()


class Examiner:
    """Judges births and keeps calls, as long as its budget lasts."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._num_judged = 0
        self._bytes_left = _KEPT_BYTES

    def examine(
        self, call: OperatorCall, values: BadValues, place: Place, *, is_birth: bool, is_turned: bool
    ) -> Examination:
        """Look at a call that has just run, before the next one does.

        Args:
            values: harmful ones that it returned.
            is_birth: no operand was harmful.
            is_turned: an operand was a legitimate infinity.
        """
        op = operator(call.func)
        if op.is_empty:
            return Examination(judge(call, values, place, self._recorder, is_turned=is_turned))
        kept = None
        if op.namespace in ("aten", "prims"):  # others need more than torch, or ranks
            kept = call.frozen(self._bytes_left)
            self._bytes_left -= 0 if kept is None else kept.num_bytes
        if not is_birth or self._num_judged >= _JUDGED:
            return Examination(None, kept)
        self._num_judged += 1
        first = self._num_judged <= _FOLLOWED
        judgement = judge(call, values, place, self._recorder, is_turned=is_turned, asks_zeros=first)
        return Examination(judgement, kept, making_of(call, self._recorder, values.slot) if first else UNKNOWN)
