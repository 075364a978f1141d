"""Whether somebody other than the watched steps wrote to optimizer states, as one who loads a checkpoint does."""

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import add, attrgetter, sub
from typing import Any

from torch import Tensor

_VERSION = attrgetter("_version")
_MAX_SURPRISES = 3


class StateVersions:
    """Versions of all tensors in optimizer states, looked at once a step.

    Thousands of tensors take a millisecond or two, so that the end of a step is not looked at, too, once it is known
    by how much a step raises each version: an optimizer does the same in every step. One that does not is looked at
    twice.
    """

    def __init__(self) -> None:
        self._num_surprises = 0
        self.forget()

    def forget(self) -> None:
        """No step has ended yet."""
        self._start: tuple[list[int], list[int]] = [], []
        self._end: tuple[list[int], list[int]] | None = None
        self._raised: dict[int, list[int]] = {}  # by how many optimizers stepped
        self.is_new = True

    def were_written(self, states: Iterable[Mapping[Any, Any]]) -> bool:
        """At the beginning of a step, once: whether it is the first, the last one did not end, or somebody wrote.

        Args:
            states: of each optimizer, by parameter.
        """
        now, end = _identities(states), self._end
        self._start, self._end = now, None
        if now == end:
            return False
        if end is not None and self._raised:
            self._num_surprises += 1
        self._raised = {}
        return True

    def note_end(self, states: Iterable[Mapping[Any, Any]], num_stepped: int) -> None:
        """At the end of a step.

        Args:
            num_stepped: how often optimizers stepped in it.
        """
        self.is_new = False
        ids, versions = self._start
        raised = self._raised.get(num_stepped)
        if raised is not None:
            self._end = ids, list(map(add, versions, raised))
            return
        self._end = _identities(states)
        if self._end[0] == ids and self._num_surprises < _MAX_SURPRISES:
            self._raised[num_stepped] = list(map(sub, self._end[1], versions))


def _identities(states: Iterable[Mapping[Any, Any]]) -> tuple[list[int], list[int]]:
    """Ids and versions of all tensors; no line of Python for each."""
    own = [one for optimizer in states for one in optimizer.values()]
    try:
        values = list(chain.from_iterable(map(dict.values, own)))
        return list(map(id, values)), list(map(_VERSION, values))
    except (TypeError, AttributeError):  # a state is no dictionary, or holds what is no tensor
        mappings = [one for one in own if isinstance(one, Mapping)]
        tensors = [value for one in mappings for value in one.values() if isinstance(value, Tensor)]
        return list(map(id, tensors)), list(map(_VERSION, tensors))
