"""Modules' buffers before a step, and whether what they hold is meant."""

from collections.abc import Iterable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from diagnostics.tensors import all_finite, any_bad, bad_flags, values_of, wide
from diagnostics.watching.copies import put_back

_LARGEST = 2**22  # elements; larger buffers are tables that no step changes
_ALWAYS_COPIED = 2**16  # elements


def has_nan(tensor: Tensor) -> Tensor:
    """Boolean scalar on the device: whether a tensor of any shape and layout holds a NaN."""
    flags = [torch.isnan(wide(values)).any() for values in values_of([tensor])]
    return torch.stack(flags).any() if flags else torch.zeros((), dtype=torch.bool)


def _fits(copy: Tensor | None, tensor: Tensor) -> TypeGuard[Tensor]:
    """Whether a copy can be written over by what a strided tensor holds now."""
    if copy is None or not copy.layout is tensor.layout is torch.strided:
        return False
    return copy.shape == tensor.shape and copy.dtype is tensor.dtype


def _size(tensor: Tensor) -> int:
    """Elements that are stored: of a sparse tensor those that have a value, whatever its shape."""
    if tensor.layout is torch.strided:
        return tensor.numel()
    return sum(values.numel() for values in values_of([tensor]))


class Buffers:
    """Copies of modules' buffers, which a step writes in place or replaces. Undone, a step leaves neither.

    A copy is renewed only where its tensor changed. Large tables are not copied. Buffers are known by the number of
    their place.
    """

    def __init__(self, modules: Iterable[nn.Module], tolerant: "Buffers | None" = None) -> None:
        """`tolerant`: an earlier inventory, in some of whose buffers infinity turned out to be meant."""
        self._slots = [(module._buffers, name) for module in modules for name in module._buffers]
        self._kept: list[tuple[Tensor | None, int, Tensor | None]] = [(None, 0, None)] * len(self._slots)
        self._meant: set[tuple[int, str]] = set() if tolerant is None else tolerant._meant
        found = self.current()
        held = [(i, values) for i, tensor in found.items() for values in values_of([tensor])]
        flags = bad_flags([values for _, values in held])  # one read
        bad = {i for (i, _), flag in zip(held, flags, strict=True) if flag}  # masks, running extremes
        self._infinite = bad | {i for i in range(len(self._slots)) if self._key(i) in self._meant}
        self._undefined = {i for i in bad if bool(has_nan(found[i]))}

    def current(self) -> dict[int, Tensor]:
        """Those that may change, any shape."""
        found = {i: holder.get(name) for i, (holder, name) in enumerate(self._slots)}
        return {i: tensor for i, tensor in found.items() if tensor is not None and _size(tensor) <= _LARGEST}

    def versions(self) -> list[tuple[int, int]]:
        """Equal for as long as no operator wrote to a buffer or put another in its place."""
        return [(id(tensor), tensor._version) for tensor in self.current().values()]

    # Copies

    @torch.no_grad()
    def take(self) -> None:
        """Make the copies those of now."""
        now = self.current()
        copies, tensors = [], []
        for i, (holder, name) in enumerate(self._slots):
            tensor, (old, version, copy) = now.get(i), self._kept[i]
            if tensor is None:
                self._kept[i] = (holder.get(name), 0, None)
            # Kernels of batch normalisation write without a trace in the version.
            elif tensor is not old or tensor._version != version or _size(tensor) <= _ALWAYS_COPIED:
                if tensor is old and _fits(copy, tensor):
                    self._kept[i] = (tensor, tensor._version, copy)
                    copies.append(copy)
                    tensors.append(tensor.detach())
                else:
                    self._kept[i] = (tensor, tensor._version, tensor.detach().clone())
        if copies:  # many and small
            torch._foreach_copy_(copies, tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what the last `take` found."""
        for i, ((holder, name), (tensor, version, copy)) in enumerate(zip(self._slots, self._kept, strict=True)):
            if name in holder and holder[name] is not tensor:
                holder[name] = tensor
            if tensor is None or copy is None:
                continue
            if tensor._version != version or _size(tensor) <= _ALWAYS_COPIED:
                put_back(tensor, copy)
                self._kept[i] = (tensor, tensor._version, copy)

    # Values

    def are_sound(self) -> Tensor:
        """Boolean scalar on the device: all are finite; where infinity is meant, none is NaN."""
        found = self.current()
        strict = all_finite(tensor for i, tensor in found.items() if i not in self._infinite)
        loose = [~has_nan(t) for i, t in found.items() if i in self._infinite - self._undefined]
        return torch.stack([strict, *(flag.to(strict.device) for flag in loose)]).all()

    def bad(self) -> dict[int, Tensor]:
        """Copies of those that are not finite; where infinity is meant, of those that are NaN."""
        found = {i: tensor.detach().clone() for i, tensor in self.current().items()}
        strict = {i: t for i, t in found.items() if i not in self._infinite and any_bad(values_of([t]))}
        loose = {i: t for i, t in found.items() if i in self._infinite - self._undefined and bool(has_nan(t))}
        return strict | loose

    def tolerate_infinity(self, numbers: set[int]) -> None:
        """In these buffers infinity is no fault."""
        self._meant |= {self._key(i) for i in numbers}
        self._infinite |= numbers

    def _key(self, number: int) -> tuple[int, str]:
        """Of a buffer's place, as long as its module lives."""
        holder, name = self._slots[number]
        return id(holder), name
