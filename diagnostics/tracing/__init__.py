"""A step's loss, gradient or weight is NaN: `explain(step)` says where it was born.

It runs the step once, operator by operator, and follows each element that is not finite back to the operator that
made it from finite ones, or to the tensor that brought it. The verdict names operator, module, line, samples and
operands, why it happened, and what to change.

    verdict = explain(lambda: train_one(batch), model=model, optimizer=optimizer, batch=batch)
    print(verdict)

A traced step takes many times as long as a plain one. `diagnostics.Watch` runs steps at full speed and traces the
bad one alone.
"""

from diagnostics.tracing.calls import OperatorCall
from diagnostics.tracing.explanation import Explanation, explain
from diagnostics.tracing.frames import add_library, is_library
from diagnostics.tracing.step_batch import plain

__all__ = [
    # One call for a step that can be repeated
    "explain",
    # For a loop that repeats its step itself
    "Explanation",
    "OperatorCall",
    # A batch as evidence
    "plain",
    # Whose code a file is
    "add_library",
    "is_library",
]
