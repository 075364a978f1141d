"""Batches that come first out of torch's data loaders. Not by hooks, for a loader has none."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils.data import dataloader

from diagnostics.tensors import tensors_in


class _Loaders:
    """Stands in for `__next__` of torch's iterators, as long as somebody listens."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._original: Any = None
        self._stand_in: Any = None
        self._first: list[weakref.ref[Tensor]] = []

    def listen(self, listener: Any) -> None:
        """listener: any object; it listens until `forget`, or until nobody has it."""
        self._listeners.add(listener)
        kind = dataloader._BaseDataLoaderIter
        if self._stand_in is not None and kind.__next__ is self._stand_in:  # another one may have put its own back
            return
        original = self._original = kind.__next__
        own = weakref.ref(self)

        def following(iterator: Any) -> Any:
            batch = original(iterator)
            loaders = own()
            if loaders is not None and iterator._num_yielded == 1:
                loaders._note(iterator, batch)
            return batch

        self._stand_in = kind.__next__ = following  # type: ignore[method-assign, assignment]

    def forget(self, listener: Any) -> None:
        self._listeners.discard(listener)
        if not self._listeners and self._original is not None:
            if dataloader._BaseDataLoaderIter.__next__ is self._stand_in:
                dataloader._BaseDataLoaderIter.__next__ = self._original  # type: ignore[method-assign]
            self._original, self._stand_in, self._first = None, None, []

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
