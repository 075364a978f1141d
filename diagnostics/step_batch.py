"""What a step was given: tensors by name, the batch dimension, the samples' ids."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class StepBatch:
    """A batch as the caller names it: a tensor, or mappings and sequences of them, or a sequence of micro-batches.

    tensors: (name, tensor) pairs. size: length of the batch dimension, the first one; None where it is unknown.
    """

    def __init__(self, content: Any) -> None:
        self._content = content
        self.tensors = list(_named_tensors(content))
        sizes = Counter(len(tensor) for _, tensor in self.tensors if tensor.ndim)
        self.size: int | None = sizes.most_common(1)[0][0] if sizes else None

    @property
    def is_sequence(self) -> bool:
        return isinstance(self._content, (list, tuple))

    @property
    def num_micro_batches(self) -> int:
        """Of a sequence of mappings; else 1."""
        content = self._content
        several = self.is_sequence and len(content) > 1 and all(isinstance(item, Mapping) for item in content)
        return len(content) if several else 1

    def ids(self, micro_batch: int | None = None) -> tuple[str, ...]:
        """The sequence of strings that is as long as the batch dimension; none where it is not known of which part."""
        if self.num_micro_batches == 1:
            return _ids_in(self._content, self.size)
        if micro_batch is None or not 0 <= micro_batch < self.num_micro_batches:
            return ()
        return _ids_in(self._content[micro_batch], self.size)


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "batch", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _named_tensors(item, f"{name}.{i}" if name else str(i))


def _ids_in(batch: Any, size: int | None) -> tuple[str, ...]:
    """The sequence of strings in a batch that is as long as its tensors."""
    if isinstance(batch, (list, tuple)) and batch and all(isinstance(item, str) for item in batch):
        return tuple(batch) if len(batch) == size else ()
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((found for item in items if (found := _ids_in(item, size))), ())
