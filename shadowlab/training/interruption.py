"""Ctrl-C or SIGTERM. In a training loop the first asks, a second Ctrl-C ends; before the loop each ends at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

_ONE_PRESS_SECONDS = 0.5  # a launcher passes the terminal's signal on to processes that had it already
_NOTICE = "stopping: this step is finished, then saved; Ctrl-C (again) ends at once without saving"


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside this context SIGINT and SIGTERM raise KeyboardInterrupt, and it leaves the context as such even where a
    library caught it and raised an error of its own (safetensors does while it opens a file)."""
    heard = False

    def hear(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if heard:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interruption:
    """Inside this context the first SIGINT or SIGTERM sets `asked`, for the loop to end by itself; a SIGINT after it
    raises KeyboardInterrupt. SIGTERM may come again: launchers and queues repeat it.

    Args:
        speaks: whether this process tells the user that it has heard.
        show: puts the words where a live view would draw over a line; returns whether it did. Called in the handler.
    """

    def __init__(self, *, speaks: bool, show: Callable[[str], bool] | None = None) -> None:
        self.asked = False
        self._speaks, self._show = speaks, show
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
            if self._speaks and not (self._show is not None and self._show(_NOTICE)):
                os.write(2, f"\n{_NOTICE}\n".encode())  # not print: the signal may have come in the middle of one
        elif number == signal.SIGINT and now - self._first_at > _ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
