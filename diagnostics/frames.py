"""Variables of the frames that call us, and which of them are a user's own."""

import sys
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from types import FrameType
from typing import Any

_HELD_BY_FRAME = 3  # references to the snapshot of a frame's variables: the frame's, a local one, the question's
_LIBRARIES = (
    *("torch", "diagnostics", "accelerate", "lightning", "pytorch_lightning", "lightning_fabric", "transformers"),
    *("deepspeed", "ignite", "contextlib", "functools"),
)


def variables_of(frame: FrameType) -> dict[str, Any]:
    """Names and values of a frame's own variables, as they are now; nothing of it is kept by the frame."""
    found = frame.f_locals
    values = dict(found)
    is_snapshot = frame.f_code.co_flags & CO_OPTIMIZED and type(found) is dict
    if is_snapshot and sys.getrefcount(found) <= _HELD_BY_FRAME:  # else the frame's code has it, from `locals()`
        found.clear()  # before Python 3.13 it would keep alive what the variables held, until somebody looks again
    return values


def own_frames() -> Iterator[FrameType]:
    """Frames of the stack that are of no library that trains, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _LIBRARIES:
            yield frame
        frame = frame.f_back
