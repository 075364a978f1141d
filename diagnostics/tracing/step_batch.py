"""What a step was given: tensors by name, the batch dimension, the samples' ids."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


class StepBatch:
    """A batch as the caller names it: a tensor, or mappings, dataclasses and sequences of them.

    A sequence of mappings is one of micro-batches; one of pictures, (C, H, W) each, or of more than three tensors of
    one shape is one of samples.

    Attributes:
        tensors: (name, tensor) pairs; any shape.
        size: length of the batch dimension, the first one; None where it is unknown.
    """

    def __init__(self, content: Any) -> None:
        self._content = content = plain(content)
        self.tensors = list(_named_tensors(content))
        sizes = Counter(len(tensor) for _, tensor in self.tensors if tensor.ndim)
        self.size: int | None = sizes.most_common(1)[0][0] if sizes else None
        if self.is_samples:
            self.size = len(content)

    @property
    def is_sequence(self) -> bool:
        """Whether it is a list or a tuple."""
        return isinstance(self._content, list)

    @property
    def is_samples(self) -> bool:
        """Whether each item of a sequence is a sample."""
        content = self._content
        if not self.is_sequence or len(content) < 2 or not all(isinstance(item, Tensor) for item in content):
            return False
        pictures = all(item.ndim == 3 and len(item) in (1, 3, 4) for item in content)
        return pictures or (len(content) > 3 and content[0].ndim > 0 and len({item.shape for item in content}) == 1)

    @property
    def num_micro_batches(self) -> int:
        """Of a sequence of mappings; else 1."""
        content = self._content
        several = self.is_sequence and len(content) > 1 and all(isinstance(item, dict) for item in content)
        return len(content) if several else 1

    def ids(self, micro_batch: int | None = None) -> tuple[str, ...]:
        """The sequence of strings that is as long as the batch dimension; empty where there is none.

        micro_batch: the part that is asked for, of several; None, not known, gives none.
        """
        if self.num_micro_batches == 1:
            return _ids_in(self._content, self.size)
        if micro_batch is None or not 0 <= micro_batch < self.num_micro_batches:
            return ()
        return _ids_in(self._content[micro_batch], self.size)


def plain(value: Any) -> Any:
    """A batch in dictionaries and lists, in place of mappings, dataclasses and tuples; its tensors as they are."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name, None)) for field in fields(value)}
    return value


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "batch", value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _named_tensors(item, f"{name}.{key}" if name else str(key))


def _ids_in(batch: Any, size: int | None) -> tuple[str, ...]:
    """The sequence of strings in a batch that is as long as its tensors."""
    if isinstance(batch, list) and batch and all(isinstance(item, str) for item in batch):
        return tuple(batch) if len(batch) == size else ()
    items = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list) else ()
    return next((found for item in items if (found := _ids_in(item, size))), ())
