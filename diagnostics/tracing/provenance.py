"""Which operator wrote each non-finite element that is in memory, and what is known of each storage.

A *node* is `2 * event + 1` for an event's legitimate infinities (masks and what they pass through) and `2 * event`
for its harmful values. Shadows hold one node for each element, 0 where the element is finite.
"""

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef


def harmful(event: int) -> int:
    """The node of an event's harmful values."""
    return 2 * event


def legitimate(event: int) -> int:
    """The node of an event's legitimate infinities."""
    return 2 * event + 1


def is_legitimate(node: int) -> bool:
    """Whether a node stands for legitimate infinities."""
    return node % 2 == 1


def event_of(node: int) -> int:
    """The number of a node's event."""
    return node // 2


def storage_key(tensor: Tensor) -> int:
    """What identifies a strided tensor's storage (any shape) for as long as it lives."""
    key: int = tensor.untyped_storage()._cdata
    return key


@dataclass(frozen=True)
class Span:
    """Rows first .. last of a tensor of `length` rows, not all of them. Their union with others may be all: None."""

    length: int
    first: int
    last: int

    def __or__(self, other: "Span | None") -> "Span | None":
        if other is None or other.length != self.length:
            return None
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Span(self.length, first, last) if last - first + 1 < self.length else None


Geometry = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, stride, storage offset


@dataclass(slots=True)
class Storage:
    """What is known of one storage."""

    reference: StorageWeakRef
    """Weak. It keeps the storage's address from being given to another one."""
    shadow: Tensor | None = None
    """A node for each element: int32, (elements,); None where all are finite."""
    nodes: frozenset[int] = frozenset()
    """All that may be in the shadow."""
    itemsize: int = 0
    """Bytes of an element of the shadow."""
    shape: tuple[int, ...] | None = None
    """Of the tensor that fills it, where its rows lie one after the other."""
    span: Span | None = None
    """The rows of the batch that it was computed from, where not from all."""
    is_old: bool = False
    """It was there before the step."""
    replaces: frozenset[int] = frozenset()
    """Old storages that it may be the successor of (a weight average that is rebound)."""
    carries: frozenset[int] = frozenset()
    """Events whose value it was computed from, where it is a single number."""
    version: int = 0
    """How often a traced operator wrote to it."""
    from_batch: bool = False
    """It was computed from the batch."""
    from_model: bool = False
    """It was computed from a model's output."""
    from_gradient: bool = False
    """It was computed from a parameter's gradient."""
    from_collective: bool = False
    """It is the output of one, which waiting for it writes once more."""
    producer: "Producer | None" = None
    """The call that wrote it last, and behind it the few before."""
    referred: "Reference | None" = None
    """What was made last of a tensor that lies here."""

    def producer_of(self, version: int) -> "Producer | None":
        """The call that wrote this version; None where that is forgotten."""
        found = self.producer
        while found is not None and found.version != version:
            found = found.earlier
        return found


@dataclass(slots=True)
class Reference:
    """A tensor argument of a past call, as it was then."""

    tensor: "weakref.ref[Tensor]"
    storage: Storage
    version: int
    """Of the storage, when the call was made."""
    geometry: Geometry
    before: Tensor | None
    """A copy of what the call overwrote."""


@dataclass(slots=True)
class Producer:
    """A past call, as the maker of one of its outputs."""

    func: OpOverload
    name: str
    args: tuple[Any, ...]
    """With a `Reference` instead of each tensor; `kwargs` likewise."""
    kwargs: dict[str, Any]
    slot: int
    """Which of the call's outputs."""
    geometry: Geometry
    """Of the output."""
    is_foreach: bool
    version: int
    """Of the storage, after the call."""
    earlier: "Producer | None"
    """What wrote the storage before."""


class Memory:
    """All storages that were seen, and the shadows of those with non-finite elements.

    Its methods take strided tensors of any shape.

    Attributes:
        storages: the records, by `storage_key`.
    """

    def __init__(self) -> None:
        self.storages: dict[int, Storage] = {}
        self._geometries: dict[Geometry, Geometry] = {}

    def known(self, tensor: Tensor) -> Storage | None:
        """The record of a tensor's storage; None where it was never seen."""
        return self.storages.get(tensor.untyped_storage()._cdata)

    def storage(self, tensor: Tensor) -> Storage:
        """The record of a tensor's storage, made if it is new."""
        untyped = tensor.untyped_storage()
        record = self.storages.get(untyped._cdata)
        if record is None:
            record = self.storages[untyped._cdata] = Storage(StorageWeakRef(untyped))
            if tensor.ndim and self.covers(tensor) and tensor.stride(0) * tensor.shape[0] == tensor.numel():
                record.shape = self.geometry(tensor)[0]
        return record

    def geometry(self, tensor: Tensor) -> Geometry:
        """Shape, stride and offset. Equal ones are one object: there are few, and a step has thousands of tensors."""
        found: Geometry = tensor.shape, tensor.stride(), tensor.storage_offset()  # type: ignore[assignment]
        known = self._geometries.get(found)
        if known is None:
            known = self._geometries[found] = tuple(found[0]), found[1], found[2]
        return known

    def rows(self, tensor: Tensor, where: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which rows of a tensor hold the elements that a mask selects; of a view, rows of what it is a view of.

        Args:
            where: booleans in the tensor's shape.

        Returns:
            (shape of what has the rows, sorted rows, 4096 at most).
        """
        record = self.known(tensor)
        if record is not None and record.shape is not None and not self.covers(tensor):
            strides = torch.tensor(tensor.stride(), dtype=torch.long, device=tensor.device)
            offsets = (where.nonzero() * strides).sum(1) + tensor.storage_offset()
            row = max(1, math.prod(record.shape[1:]))
            return record.shape, tuple((offsets // row).unique()[:4096].tolist())
        if not tensor.ndim:
            return (), ()
        return tuple(tensor.shape), tuple(where.reshape(len(where), -1).any(1).nonzero().flatten()[:4096].tolist())

    def span(self, tensor: Tensor, record: Storage | None = None) -> Span | None:
        """The rows of the batch that a tensor comes from; None for all of them, or where that is lost.

        record: the tensor's, where the caller has it.
        """
        record = self.known(tensor) if record is None else record
        if record is None or record.span is not None or record.shape is None or self.covers(tensor):
            return None if record is None else record.span
        row = max(1, math.prod(record.shape[1:]))
        first = tensor.storage_offset()
        last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return Span(record.shape[0], first // row, last // row)

    def spans(self, tensors: Iterable[Tensor], records: Iterable[Storage | None]) -> Span | None:
        """The rows that something computed from several tensors comes from; only those from the batch count.

        records: of the tensors, None of one that was never seen.
        """
        joint: Span | None = None
        for tensor, record in zip(tensors, records, strict=True):
            if record is not None and record.from_batch:
                span = self.span(tensor, record)
                joint = span if joint is None or span is None else joint | span
                if joint is None:
                    return None
        return joint

    def is_alive(self, storage: int) -> bool:
        """Whether a storage, by its key, is still held by somebody."""
        record = self.storages.get(storage)
        return record is not None and not record.reference.expired()

    def shadow(self, tensor: Tensor, record: Storage | None = None) -> "Shadow | None":
        """Nodes of the tensor's elements; None where all are finite as far as was seen.

        record: the tensor's, where the caller has it.
        """
        record = self.known(tensor) if record is None else record
        if record is None or record.shadow is None:
            return None
        if record.itemsize != tensor.dtype.itemsize:  # seen as another type: any bad element stands for all
            return Shadow(record.shadow.max().expand(tensor.shape), record.nodes)
        view = record.shadow.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return Shadow(view, record.nodes) if self.covers(tensor) or bool(view.any()) else None

    def mark(self, tensor: Tensor, nodes: Tensor | None, named: Iterable[int] = ()) -> None:
        """Note which node wrote each element of a tensor.

        Args:
            nodes: int32 in the tensor's shape, 0 where it is finite; None: all of it is finite now.
            named: all nodes among them.
        """
        record = self.storage(tensor)
        covers = self.covers(tensor)
        if nodes is None and (covers or record.shadow is None):
            record.shadow, record.nodes = None, frozenset()
            return
        if record.shadow is None or record.itemsize != tensor.dtype.itemsize:
            if nodes is None:
                return
            record.itemsize = tensor.dtype.itemsize
            length = tensor.untyped_storage().nbytes() // record.itemsize
            record.shadow = torch.zeros(length, dtype=torch.int32, device=tensor.device)
        view = record.shadow.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if nodes is None:
            view.zero_()
        elif not _overlaps(tensor):
            view.copy_(nodes)
            record.nodes = frozenset(named) if covers else record.nodes | set(named)

    def reference(self, tensor: Tensor, record: Storage) -> Reference:
        """A tensor, as it is now, in what is remembered of calls; `record` is its storage's."""
        geometry = self.geometry(tensor)
        found = record.referred = Reference(weakref.ref(tensor), record, record.version, geometry, None)
        return found

    @staticmethod
    def covers(tensor: Tensor) -> bool:
        """Whether a tensor is all of its storage."""
        return tensor.numel() * tensor.dtype.itemsize == tensor.untyped_storage().nbytes()


def _overlaps(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@dataclass(frozen=True)
class Shadow:
    """The nodes of a tensor's elements."""

    grid: Tensor
    """int32 in the tensor's shape, at least one not 0."""
    candidates: frozenset[int]
    """All nodes that can be in the grid."""

    @property
    def nodes(self) -> frozenset[int]:
        """Those that are in it."""
        if len(self.candidates) == 1:
            return self.candidates
        return frozenset(values_in(self.grid)) - {0}


def values_in(grid: Tensor) -> set[int]:
    """All numbers in a tensor of integers, any shape."""
    few = grid.numel() <= 1024  # sorting costs more than reading them
    return set((grid.reshape(-1) if few else grid.unique()).tolist())


def nodes_in(shadows: Iterable[Shadow | None]) -> set[int]:
    """All nodes in some shadows."""
    return {node for shadow in shadows if shadow is not None for node in shadow.nodes}
