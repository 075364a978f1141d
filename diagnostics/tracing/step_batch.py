"""What a step was given: tensors by name, the batch dimension, the samples' ids."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.tensors import strided

# Words in the names of fields.
_IDS = {"id", "ids", "idx", "index", "indices", "key", "keys", "uid", "uuid", "guid", "name", "names", "stem"}
_IDS |= {"file", "files", "filename", "filenames", "path", "paths", "url", "urls"}
_NO_IDS = {"input", "token", "tokens", "position", "positions", "type", "class", "label", "labels", "category", "task"}
_LANGUAGE = {"prompt", "prompts", "caption", "captions", "text", "texts", "sentence", "description", "instruction"}

_LIBRARIES = ("builtins", "collections", "numpy", "torch")  # whose objects are values, not batches
_MAX_DEPTH = 4  # of objects in objects


class StepBatch:
    """A batch as the caller names it: a tensor, or mappings, dataclasses and sequences of them.

    A sequence of mappings is one of micro-batches; one of pictures, (C, H, W) each, or of more than three tensors of
    one shape is one of samples.
    """

    tensors: list[tuple[str, Tensor]]
    """(name, tensor) pairs; any shape."""

    size: int | None
    """Length of the batch dimension, the first one; None where it is unknown."""

    def __init__(self, content: Any) -> None:
        self._content = content = plain(content)
        self.tensors = list(_named_tensors(content))
        self.size = len(content) if self.is_samples else _size_of(tensor for _, tensor in self.tensors)

    def learn(self, inputs: Iterable[Tensor]) -> None:
        """Take the batch dimension, where it is unknown, from tensors (any shape) that enter the model."""
        if self.size is None:
            self.size = _size_of(inputs)

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
        """What names the samples: strings or integers, as many as the batch dimension is long; empty where there are
        none. A field that is called so (`key`, `image_id`, `path`, `idx`) goes before one that is not; prompts,
        captions and other language are none.

        micro_batch: the part that is asked for, of several; None, not known, gives none.
        """
        if self.num_micro_batches == 1:
            return _ids_in(self._content, self.size)
        if micro_batch is None or not 0 <= micro_batch < self.num_micro_batches:
            return ()
        return _ids_in(self._content[micro_batch], self.size)


def plain(value: Any) -> Any:
    """A batch in dictionaries and lists, in place of mappings, tuples and objects with fields (dataclasses, named
    tuples, a loader's own classes); its tensors as they are."""
    return _plain(value, ())


def _plain(value: Any, above: tuple[Any, ...]) -> Any:
    """above: the objects that it lies in, which it may know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, above) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_plain(item, above) for item in value]
    named = _fields_of(value)
    if not named or len(above) == _MAX_DEPTH or any(value is one for one in above):
        return value
    return {name: _plain(getattr(value, name, None), (*above, value)) for name in named}


def _fields_of(value: Any) -> list[str]:
    """Names of what an object of a named tuple, a dataclass or a user's class holds; none of anything else."""
    if isinstance(value, tuple):
        return list(getattr(value, "_fields", ()))
    if isinstance(value, type):
        return []
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    is_library = type(value).__module__.partition(".")[0] in _LIBRARIES
    if is_library or isinstance(value, (Tensor, nn.Module)) or callable(value):
        return []
    slots = [slot for kind in type(value).__mro__ for slot in vars(kind).get("__slots__", ())]
    return [name for name in [*getattr(value, "__dict__", {}), *slots] if not name.startswith("_")]


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "batch", value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _named_tensors(item, f"{name}.{key}" if name else str(key))


def _size_of(tensors: Iterable[Tensor]) -> int | None:
    """The commonest length of the first dimension. One dimension alone may be that of features, as in a model that is
    called with one sample: of those only integers count, which are labels, tokens or ids."""
    shaped = [tensor for tensor in tensors if tensor.ndim]
    votes = Counter(len(tensor) for tensor in shaped)
    sizes = [len(tensor) for tensor in shaped if tensor.ndim > 1]
    sizes = sizes or [len(tensor) for tensor in shaped if not tensor.is_floating_point()]
    return max(dict.fromkeys(sizes), key=lambda size: votes[size], default=None)


def input_values(tensor: Tensor) -> Tensor | None:
    """The strided values of a tensor (any shape) that enters a model; inside `torch.func.vmap` those of all samples,
    (B, ...). None where there is no memory to look at."""
    functorch = torch._C._functorch
    first: int | None = None
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            first = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
    return strided(tensor if first is None else tensor.movedim(first, 0))


def _ids_in(batch: Any, size: int | None) -> tuple[str, ...]:
    """Of all fields that may name the samples of a batch, the one that is most probably meant to."""
    found = [pair for pair in _columns(batch, "") if len(pair[1]) == size]
    ranked = sorted((rank, i) for i, pair in enumerate(found) if (rank := _rank(*pair)) is not None)
    return tuple(map(str, found[ranked[0][1]][1])) if ranked else ()


def _columns(batch: Any, name: str) -> Iterator[tuple[str, list[Any]]]:
    """(name, values) of every flat sequence in a batch: lists of strings or integers, integers in tensors and arrays
    of one dimension."""
    if isinstance(batch, Tensor):
        if batch.ndim == 1 and not batch.is_floating_point() and not batch.is_complex():
            yield name, batch.tolist()
    elif isinstance(batch, dict):
        for key, value in batch.items():
            yield from _columns(value, key)
    elif isinstance(batch, list):
        if batch and all(isinstance(item, (str, int)) for item in batch):
            yield name, batch
        else:
            for item in batch:
                yield from _columns(item, name)
    elif getattr(batch, "ndim", 0) == 1 and hasattr(batch, "tolist"):
        yield from _columns(batch.tolist(), name)


def _rank(name: str, values: list[Any]) -> int | None:
    """How much speaks for a column of ids, 0 the most; None: it is none."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    is_named_so = bool(words & _IDS) and not words & _NO_IDS
    if not all(isinstance(value, str) for value in values):
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        return 1 if is_named_so and whole else None
    if is_named_so:
        return 0
    is_language = bool(words & (_LANGUAGE | _NO_IDS)) or any(" " in value.strip() for value in values)
    return None if is_language else 2
