"""One step, operator by operator: where a non-finite value was born and how it spread."""

from diagnostics.tracing.calls import OperatorCall as Before
from diagnostics.tracing.explanation import Explanation, explain
from diagnostics.tracing.step_batch import plain

__all__ = [
    "Before",
    "Explanation",
    "explain",
    "plain",
]
