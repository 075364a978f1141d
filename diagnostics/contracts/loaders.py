"""Batches that come first out of torch's data loaders. Not by hooks, for a loader has none."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import dataloader

from diagnostics.patching import StandIn
from diagnostics.tensors import tensors_in


class _Loaders:
    """Hears `__next__` of torch's iterators, as long as somebody listens."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self.stand_in = StandIn(dataloader._BaseDataLoaderIter, "__next__", self._following)
        self._first: list[weakref.ref[Tensor]] = []

    def listen(self, listener: Any) -> None:
        """listener: any object; it listens until `forget`, or until nobody has it."""
        self._listeners.add(listener)
        self.stand_in.put()

    def forget(self, listener: Any) -> None:
        self._listeners.discard(listener)
        if not self._listeners:
            self.stand_in.take_back()
            self._first = []

    def _following(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def following(iterator: Any) -> Any:
            batch = original(iterator)
            if iterator._num_yielded == 1:
                self._note(iterator, batch)
            return batch

        return following

    def _note(self, iterator: Any, batch: Any) -> None:
        try:
            has_more = len(iterator._index_sampler) > 1
        except TypeError:  # it does not know
            has_more = False
        if has_more:
            known = [one for one in self._first if one() is not None]
            self._first = [*known, *(weakref.ref(tensor) for tensor in tensors_in(batch))]

    def is_first(self, tensor: Tensor) -> bool:
        """Whether a tensor of any shape is of the first batch of an iterator that has more of them."""
        return any(one() is tensor for one in self._first)


LOADERS = _Loaders()
