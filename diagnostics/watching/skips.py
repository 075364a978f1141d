"""Steps that a gradient scaler leaves out: how it finds its scale, or how it hides a NaN."""

from dataclasses import dataclass

_FALL = 2.0**8  # of the scale, below one at which steps were taken
_FREQUENT = 1 / 20  # of the steps
_FIRST_ASKED = 16  # skips that come back; doubled each time
_COLLAPSED = 2.0**-7  # no gradient needs to be made smaller than that


@dataclass
class Skips:
    """Counts them. A scale that is sought from above is left alone: its skips come in a row, before any step is taken.

    Skips that *return*, after steps that were taken, are a scaler's own where gradients have grown, or where it tries a
    larger scale every so often. They look the same where it hides a NaN that no scale cures (a document of length 1 in
    every third batch): the scale falls and falls, or it grows again in between. Which of the two it is, the scale does
    not show; the step itself does, when it is repeated under tracing. So that is asked, seldom.
    """

    limit: int
    """So many in a row are a finding."""
    total: int = 0
    in_a_row: int = 0
    may_ask: bool = True
    """Whether a step may be repeated to see why it was left out; not one that cannot be."""
    _num_taken: int = 0
    _num_returned: int = 0
    _highest: float = 0.0
    """Scale at which steps had been taken when one was left out."""
    _ask_at: int = _FIRST_ASKED
    _has_collapsed: bool = False

    def take(self) -> None:
        """A step is taken."""
        self.in_a_row = 0
        self._num_taken += 1

    def count(self, scale: float) -> None:
        """A step was left out; `scale`: by which its loss was multiplied."""
        if self._returns:
            self._num_returned += 1
            self._highest = max(self._highest, scale)
        self._has_collapsed = scale < _COLLAPSED and self._num_returned > 8
        self.total += 1
        self.in_a_row += 1

    @property
    def _returns(self) -> bool:
        return self._num_taken > 0

    @property
    def are_too_many(self) -> bool:
        """Whether this is no way to find a scale, whatever the step shows."""
        return self.in_a_row >= self.limit or self._has_collapsed

    def text(self, scale: float) -> str:
        """Why they are too many."""
        if self.in_a_row >= self.limit:
            return f"the gradient scaler skipped {self.in_a_row} steps in a row"
        return f"the gradient scaler skipped {self.total} steps, and its scale has fallen to {scale:g}"

    def asks(self, scale: float) -> bool:
        """Whether the step that was left out just now should show why. Ends the suspicion for the time being."""
        if not (self.may_ask and self._returns):
            return False
        has_fallen = scale <= self._highest / _FALL
        share = self._num_returned / (self._num_returned + self._num_taken)
        is_frequent = self._num_returned >= self._ask_at and share >= _FREQUENT
        if has_fallen:
            self._highest = scale
        if is_frequent:
            self._ask_at = 2 * self._num_returned
        return has_fallen or is_frequent
