"""What `ReduceLROnPlateau` is given, and under which name its caller has it."""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from diagnostics.patching import StandIn, own_frames, variables_of

Heard = Callable[[Any, list[str]], None]
"""Gets the scheduler, and names of the result that it is given."""


class _Plateaus:
    """Hears its `step`, as long as somebody listens."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakKeyDictionary[Any, Heard] = weakref.WeakKeyDictionary()
        self.stand_in = StandIn(ReduceLROnPlateau, "step", self._following)

    def listen(self, listener: Any, heard: Heard) -> None:
        """listener: until `forget`, or until nobody has it; `heard` must not hold it."""
        self._listeners[listener] = heard
        self.stand_in.put()

    def forget(self, listener: Any) -> None:
        self._listeners.pop(listener, None)
        if not self._listeners:
            self.stand_in.take_back()

    def _following(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: Any, metrics: Any, *args: Any, **kwargs: Any) -> Any:
            if self._listeners:
                names = list(_names_of(metrics))
                for heard in list(self._listeners.values()):
                    heard(scheduler, names)
            return original(scheduler, metrics, *args, **kwargs)

        return step


def _names_of(value: Any) -> Iterator[str]:
    """Names of this object where the scheduler is called, and in the loop: of variables, and keys of their dicts."""
    frames = {id(frame): frame for frame in (_caller(), next(own_frames(), None)) if frame is not None}
    for frame in frames.values():
        for name, one in variables_of(frame).items():
            if one is value:
                yield name
            elif isinstance(one, Mapping) and type(one).__module__ == "builtins":
                yield from (str(key) for key, item in one.items() if item is value)


def _caller() -> FrameType | None:
    """Innermost frame that is neither ours nor torch's: the Trainer of transformers steps schedulers itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in ("torch", "diagnostics"):
            return frame
        frame = frame.f_back
    return None


PLATEAUS = _Plateaus()
