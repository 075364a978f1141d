"""How fast a stage goes, and how long it will still take."""

import time
from collections import deque
from collections.abc import Callable

_FIRST_SECONDS, _SILENT_SECONDS = 5.0, 30.0  # a line is due so long after the start, and after the last line
_LEAST_SECONDS = 1.0  # in less no speed can be told
_WINDOW = 5  # lines over which the speed is measured


class Pace:
    """Of one progress display.

    Args:
        total: how many steps there are.
        done: how many of them were done before.
        clock: seconds, for tests.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._began = clock()
        self._lines: deque[tuple[float, int]] = deque([(self._began, done)], maxlen=_WINDOW + 1)

    def is_overdue(self) -> bool:
        """Whether nothing was said for so long that a person wonders whether it still runs."""
        last = self._lines[-1][0]
        return self._clock() - last >= (_FIRST_SECONDS if last == self._began else _SILENT_SECONDS)

    def words(self, step: int, noun: str) -> list[str]:
        """For a line at `step`: seconds since the start, speed over the last lines, time left."""
        now = self._clock()
        then, before = self._lines[0]
        self._lines.append((now, step))
        found = [f"{now - self._began:.0f} s"]
        if step > before and now - then >= _LEAST_SECONDS:
            speed = (step - before) / (now - then)
            found.append(f"{speed:.3g} {noun}s/s" if speed >= 1 else f"{1 / speed:.3g} s/{noun}")
            if self._total > step:
                found.append(f"{duration((self._total - step) / speed)} left")
        return found


def duration(seconds: float) -> str:
    """Of two units at most: `45 s`, `12 min`, `3 h 20 min`, `2 d 5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
