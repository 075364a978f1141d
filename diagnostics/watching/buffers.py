"""Modules' buffers before a step, and whether what they hold is meant."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from diagnostics.tensors import all_finite, any_bad, bad_flags, values_of

_LARGEST = 2**22  # elements; larger buffers are tables that no step changes
_ALWAYS_COPIED = 2**16  # elements


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
        flags = bad_flags(list(found.values()))  # one read
        bad = {i for i, flag in zip(found, flags, strict=True) if flag}  # masks, running extremes
        self._infinite = bad | {i for i in range(len(self._slots)) if self._key(i) in self._meant}
        self._undefined = {i for i in bad if bool(torch.isnan(found[i]).any())}

    def current(self) -> dict[int, Tensor]:
        """Those that may change, any shape."""
        found = {i: holder.get(name) for i, (holder, name) in enumerate(self._slots)}
        return {i: tensor for i, tensor in found.items() if tensor is not None and tensor.numel() <= _LARGEST}

    def versions(self) -> list[tuple[int, int]]:
        """Equal for as long as no operator wrote to a buffer or put another in its place."""
        return [(id(tensor), tensor._version) for tensor in self.current().values()]

    # Copies

    def take(self) -> None:
        """Make the copies those of now."""
        now = self.current()
        for i, (holder, name) in enumerate(self._slots):
            tensor, (old, version, _) = now.get(i), self._kept[i]
            if tensor is None:
                self._kept[i] = (holder.get(name), 0, None)
            # Kernels of batch normalisation write without a trace in the version.
            elif tensor is not old or tensor._version != version or tensor.numel() <= _ALWAYS_COPIED:
                self._kept[i] = (tensor, tensor._version, tensor.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what the last `take` found."""
        for i, ((holder, name), (tensor, version, copy)) in enumerate(zip(self._slots, self._kept, strict=True)):
            if name in holder and holder[name] is not tensor:
                holder[name] = tensor
            if tensor is None or copy is None:
                continue
            if tensor._version != version or tensor.numel() <= _ALWAYS_COPIED:
                tensor.detach().copy_(copy)
                self._kept[i] = (tensor, tensor._version, copy)

    # Values

    def are_sound(self) -> Tensor:
        """Boolean scalar on the device: all are finite; where infinity is meant, none is NaN."""
        found = self.current()
        strict = all_finite(tensor for i, tensor in found.items() if i not in self._infinite)
        loose = [~torch.isnan(t).any() for i, t in found.items() if i in self._infinite - self._undefined]
        return torch.stack([strict, *(flag.to(strict.device) for flag in loose)]).all()

    def bad(self) -> dict[int, Tensor]:
        """Copies of those that are not finite; where infinity is meant, of those that are NaN."""
        found = {i: tensor.detach().clone() for i, tensor in self.current().items()}
        strict = {i: t for i, t in found.items() if i not in self._infinite and any_bad(values_of([t]))}
        loose = {i: t for i, t in found.items() if i in self._infinite - self._undefined and bool(torch.isnan(t).any())}
        return strict | loose

    def tolerate_infinity(self, numbers: set[int]) -> None:
        """In these buffers infinity is no fault."""
        self._meant |= {self._key(i) for i in numbers}
        self._infinite |= numbers

    def _key(self, number: int) -> tuple[int, str]:
        """Of a buffer's place, as long as its module lives."""
        holder, name = self._slots[number]
        return id(holder), name
