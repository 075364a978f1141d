"""Ctrl-C in a training loop: the first asks, the second ends."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

_ONE_PRESS_SECONDS = 0.5  # a launcher passes the terminal's signal on to processes that had it already
_NOTICE = b"\nCtrl-C: finishing this step, then saving; press it again to end at once without saving\n"


class Interruption:
    """Inside this context the first SIGINT sets `asked`, for the loop to end by itself, and the second one raises
    KeyboardInterrupt.

    Args:
        speaks: whether this process tells the user that it has heard.
    """

    def __init__(self, *, speaks: bool) -> None:
        self.asked = False
        self._speaks = speaks
        self._first_at = 0.0
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows no other to set a handler
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._first_at = True, now
            if self._speaks:
                os.write(2, _NOTICE)  # not print: the signal may have come in the middle of one
        elif now - self._first_at > _ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
