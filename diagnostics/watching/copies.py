"""Deep copies of nested values, which are put back into the very objects that they were made from."""

from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.tensors import inner_tensors

Restore = Callable[[], Any]
"""Puts a copy back and returns the object that it was made from. May be called several times."""


class Copies:
    """Copies of tensors and of what holds them, one for each object however often it occurs.

    Copied are tensors of any dtype and shape (of a subclass that is made of others, such as an 8-bit optimizer state,
    the inner ones), mappings, lists, deques, sets, tuples and dataclasses. Any other object is kept as it is. Put back,
    a tensor has its values again in the memory it has, where dtype and shape still fit: the step may have handed it
    out.
    """

    def __init__(self) -> None:
        self._made: dict[int, Restore] = {}  # each holds its object, so that no other gets the same id
        self._values: dict[int, Tensor] = {}
        self._left: set[int] = set()

    def of(self, value: Any) -> Restore:
        """Copy now; the result puts back."""
        if id(value) not in self._made:
            self._made[id(value)] = self._copy(value)
        return self._made[id(value)]

    def leave(self, value: Any) -> None:
        """Do not copy this object where it occurs later."""
        if id(value) not in self._made:
            self._made[id(value)] = lambda: value
            self._left.add(id(value))

    def hold(self, value: Any) -> bool:
        """Whether this object was copied."""
        return id(value) in self._made and id(value) not in self._left

    def values_of(self, tensor: Tensor) -> Tensor | None:
        """The copy of a tensor, same shape; None of one that was not copied or is made of others."""
        return self._values.get(id(tensor))

    def _copy(self, value: Any) -> Restore:
        if isinstance(value, Tensor):
            inner = inner_tensors(value)
            return self._copy_attributes(value, inner) if inner else self._copy_tensor(value)
        if isinstance(value, MutableMapping):
            return self._copy_mapping(value)
        if isinstance(value, (list, deque)):
            return self._copy_sequence(value)
        if isinstance(value, set):
            return self._copy_set(value)
        if isinstance(value, tuple):
            return _restoring_all([self.of(item) for item in value], value)
        if is_dataclass(value) and not isinstance(value, type):
            return self._copy_attributes(value, {field.name: getattr(value, field.name) for field in fields(value)})
        return lambda: value

    def _copy_tensor(self, tensor: Tensor) -> Restore:
        copy = self._values[id(tensor)] = tensor.detach().clone()

        @torch.no_grad()
        def restore() -> Tensor:
            if tensor.dtype is copy.dtype and tensor.shape == copy.shape:
                tensor.detach().copy_(copy)
            else:  # `model.half()` in the step, a state that grew
                tensor.data = copy.clone()
            return tensor

        return restore

    def _copy_attributes(self, value: Any, attributes: dict[str, Any]) -> Restore:
        parts = {name: self.of(attribute) for name, attribute in attributes.items()}

        def restore() -> Any:
            for name, part in parts.items():
                old = part()
                if getattr(value, name, None) is not old:
                    setattr(value, name, old)
            return value

        return restore

    def _copy_mapping(self, value: MutableMapping[Any, Any]) -> Restore:
        items = {key: self.of(item) for key, item in value.items()}

        def restore() -> MutableMapping[Any, Any]:
            value.clear()  # and not only what is new: the order is part of it
            for key, item in items.items():
                value[key] = item()
            return value

        return restore

    def _copy_sequence(self, value: list[Any] | deque[Any]) -> Restore:
        items = [self.of(item) for item in value]

        def restore() -> list[Any] | deque[Any]:
            value.clear()
            value.extend(item() for item in items)
            return value

        return restore

    def _copy_set(self, value: set[Any]) -> Restore:
        items = list(value)

        def restore() -> set[Any]:
            value.clear()
            value.update(items)
            return value

        return restore


def _restoring_all(parts: list[Restore], value: Any) -> Restore:
    def restore() -> Any:
        for part in parts:
            part()
        return value

    return restore
