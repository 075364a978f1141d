"""Python's search for garbage while a step is traced."""

import gc

_OBJECTS = 20_000  # that are made between two searches; Python's own choice is 700


class RareCollection:
    """Searches rarely until `end`: what is kept of a step lives to its end, and each look at it is in vain."""

    def __init__(self) -> None:
        self._thresholds = gc.get_threshold()
        if self._thresholds[0]:  # 0: the caller collects by hand
            gc.set_threshold(max(_OBJECTS, self._thresholds[0]), *self._thresholds[1:])

    def end(self) -> None:
        """As before."""
        gc.set_threshold(*self._thresholds)
