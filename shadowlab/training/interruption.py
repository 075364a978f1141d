"""Ctrl-C or SIGTERM in a training loop: the first asks, a second Ctrl-C ends."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

_ONE_PRESS_SECONDS = 0.5  # a launcher passes the terminal's signal on to processes that had it already
_NOTICE = b"\nstopping: this step is finished, then saved; Ctrl-C (again) ends at once without saving\n"


class Interruption:
    """Inside this context the first SIGINT or SIGTERM sets `asked`, for the loop to end by itself; a SIGINT after it
    raises KeyboardInterrupt. SIGTERM may come again: launchers and queues repeat it.

    Args:
        speaks: whether this process tells the user that it has heard.
    """

    def __init__(self, *, speaks: bool) -> None:
        self.asked = False
        self._speaks = speaks
        self._first_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows no other to set a handler
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._first_at = True, now
            if self._speaks:
                os.write(2, _NOTICE)  # not print: the signal may have come in the middle of one
        elif number == signal.SIGINT and now - self._first_at > _ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
