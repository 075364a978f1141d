"""Deep copies of nested values, which are put back into the very objects that they were made from."""

from collections import deque
from collections.abc import Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.tensors import inner_tensors

_ATOMS = (bool, int, float, str, type(None))


@torch.no_grad()
def put_back(tensor: Tensor, copy: Tensor) -> None:
    """Give a tensor of any shape and layout the content of its copy, in the memory it has, where that still fits."""
    held, kept = _stored(tensor.detach()), _stored(copy)  # detached: autograd minds where a leaf is written to
    if tensor.dtype is copy.dtype and tensor.shape == copy.shape and [h.shape for h in held] == [k.shape for k in kept]:
        for own, other in zip(held, kept, strict=True):
            own.copy_(other)
    else:  # `model.half()` in the step, a state that grew
        tensor.data = copy.clone()


def _stored(tensor: Tensor) -> list[Tensor]:
    """Where the content lies: a sparse tensor's `copy_` gives it other memory, which aliases do not see."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


class Copies:
    """Copies of tensors and of what holds them, one for each object however often it occurs.

    Copied are tensors of any dtype and shape (of a subclass that is made of others, such as an 8-bit optimizer state,
    the inner ones), mappings, lists, deques, sets, tuples and dataclasses. Any other object is kept as it is. Put back,
    every object holds again what it held, and a tensor has its values in the memory it has, where dtype and shape still
    fit: the step may have handed it out.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}  # id -> tensor, copy
        self._mappings: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[list[Any] | deque[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._attributes: list[tuple[Any, dict[str, Any]]] = []
        self._met: set[int] = set()  # of objects that are kept here: no other has the same id
        self._left: list[Any] = []

    def add(self, value: Any) -> None:
        """Copy now, with all that it holds."""
        ahead = [value]
        while ahead:
            one = ahead.pop()
            if type(one) in _ATOMS:  # thousands, and the questions below take their time
                continue
            if isinstance(one, Tensor):
                self._add_tensor(one, ahead)
            elif isinstance(one, (dict, list, deque, set, MutableMapping)):
                self._add_container(one, ahead)
            elif isinstance(one, (tuple, Mapping)):
                ahead += one.values() if isinstance(one, Mapping) else one
            elif is_dataclass(one) and not isinstance(one, type):
                self._add_attributes(one, {field.name: getattr(one, field.name) for field in fields(one)}, ahead)

    def leave(self, value: Any) -> None:
        """Do not copy this object where it occurs later."""
        if id(value) not in self._met:
            self._met.add(id(value))
            self._left.append(value)

    def values_of(self, tensor: Tensor) -> Tensor | None:
        """The copy of a tensor, same shape; None of one that was not copied or is made of others."""
        found = self._tensors.get(id(tensor))
        return None if found is None else found[1]

    def holds(self, tensor: Tensor) -> bool:
        """Whether this tensor was copied."""
        inner = inner_tensors(tensor)
        return all(self.holds(one) for one in inner.values()) if inner else id(tensor) in self._tensors

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back. May be called several times."""
        for mapping, items in self._mappings:
            mapping.clear()  # and not only what is new: the order is part of it
            mapping.update(items)
        for sequence, content in self._sequences:
            sequence.clear()
            sequence.extend(content)
        for one, members in self._sets:
            one.clear()
            one.update(members)
        for holder, attributes in self._attributes:
            for name, value in attributes.items():
                if getattr(holder, name, None) is not value:
                    setattr(holder, name, value)
        for tensor, copy in self._tensors.values():
            put_back(tensor, copy)

    def _add_tensor(self, tensor: Tensor, ahead: list[Any]) -> None:
        if id(tensor) in self._met:
            return
        inner = inner_tensors(tensor)
        if inner:
            self._add_attributes(tensor, inner, ahead)
        else:
            self._met.add(id(tensor))
            self._tensors[id(tensor)] = tensor, tensor.detach().clone()

    def _add_container(
        self, container: MutableMapping[Any, Any] | list[Any] | deque[Any] | set[Any], ahead: list[Any]
    ) -> None:
        if id(container) in self._met:
            return
        self._met.add(id(container))
        if isinstance(container, (dict, MutableMapping)):
            self._mappings.append((container, dict(container)))
            ahead += container.values()
        elif isinstance(container, set):
            self._sets.append((container, set(container)))
        else:
            self._sequences.append((container, list(container)))
            ahead += container

    def _add_attributes(self, holder: Any, attributes: dict[str, Any], ahead: list[Any]) -> None:
        if id(holder) not in self._met:
            self._met.add(id(holder))
            self._attributes.append((holder, attributes))
            ahead += attributes.values()
