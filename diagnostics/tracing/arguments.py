"""What an operator is given: its strided tensors, what is known of their storages, and how to find them again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diagnostics.tensors import strided
from diagnostics.tracing.nested import strided_leaves
from diagnostics.tracing.operators import Operator
from diagnostics.tracing.provenance import Memory, Storage

_PLAIN = (Tensor, torch.nn.Parameter)
_CONTAINERS = (list, tuple, dict)


class Arguments:
    """Of one call of an operator that writes to none of them. One walk, for it is most of what tracing costs.

    Attributes:
        inputs: strided tensors, any shape.
        sources: the records of their storages.
    """

    __slots__ = ("_meet", "_memory", "inputs", "sources")

    def __init__(self, memory: Memory, meet: Callable[[Tensor], Storage]) -> None:
        self._memory, self._meet = memory, meet
        self.inputs: list[Tensor] = []
        self.sources: list[Storage] = []

    def read(self, tree: Any) -> Any:
        """The same containers with a reference in the place of each strided tensor."""
        kind, find = type(tree), self._memory.storages.get
        parts = []
        for part in tree.values() if kind is dict else tree:
            if not isinstance(part, Tensor):
                parts.append(self.read(part) if type(part) in _CONTAINERS else part)
                continue
            record = None
            if type(part) in _PLAIN and part.layout is torch.strided:
                record = find(part.untyped_storage()._cdata)
            if record is None:
                values = strided(part)
                record = None if values is None else self._memory.known(values) or self._meet(values)
                if record is None or values is not part:
                    if values is not None and record is not None:
                        self.inputs.append(values)
                        self.sources.append(record)
                    parts.append(part)
                    continue
            self.inputs.append(part)
            self.sources.append(record)
            last = record.referred
            if last is None or last.version != record.version or last.before is not None or last.tensor() is not part:
                last = self._memory.reference(part, record)
            parts.append(last)
        return dict(zip(tree, parts, strict=True)) if kind is dict else tuple(parts) if kind is tuple else parts


def read_and_written(op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Strided tensors that a call reads, and those that it writes to; any shape."""
    written: list[Tensor] = []
    for key in op.writes:
        written += strided_leaves(_argument(key, args, kwargs))
    outputs = [kwargs.get(key) for key in op.writes if isinstance(key, str)]  # each is an `out=`
    skipped = {id(t) for t in (written if op.overwrites else strided_leaves(outputs))}
    return [t for t in strided_leaves((args, kwargs)) if id(t) not in skipped], written


def results_of(out: Any, written: list[Tensor]) -> list[Tensor]:
    """Strided tensors, of any shape, that a call returned and those that it wrote to, each once."""
    found = strided_leaves(out)
    if not written and len(found) < 2:
        return found
    return list({id(tensor): tensor for tensor in [*found, *written]}.values())


def _argument(key: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """By position or by name; None where it is not given."""
    if isinstance(key, str):
        return kwargs.get(key)
    return args[key] if key < len(args) else None
