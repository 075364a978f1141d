"""Steps that a loop goes on without."""

import warnings
from dataclasses import dataclass

from diagnostics.errors import NonFiniteError
from diagnostics.ranks import on_any


@dataclass
class LeftOut:
    """Steps that tripped and were left out, where the loop goes on."""

    limit: int
    """So many in a row are borne; 0 for none."""
    total: int = 0
    in_a_row: int = 0

    def bears(self, error: NonFiniteError) -> bool:
        """Whether the loop goes on without this step, which is counted and reported then."""
        if self.in_a_row >= self.limit or on_any(not error.is_restored):
            return False
        self.total += 1
        self.in_a_row += 1
        evidence = "" if error.incident is None else f"; evidence in {error.incident}"
        text = f"{error.verdict.headline()}: the step is left out, {self.total} so far{evidence}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return True
