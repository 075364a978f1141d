"""Copies that are made only where a step turns out to write."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from diagnostics.modules import in_backward
from diagnostics.tensors import is_rehearsal, parts, strided
from diagnostics.watching.copies import Copies


class FirstWrites(TorchDispatchMode):
    """Copies a parameter right before the first operator writes to its memory; one that is only read costs nothing.

    It sees operators alone: not what NumPy, another process or a kernel that is called with an address writes. Code
    that torch.compile would compile while it looks runs eagerly.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], has_copy: Callable[[nn.Parameter], bool] = lambda _: False
    ) -> None:
        """`has_copy`: whether somebody else keeps a copy of a parameter; a write to it is then only noted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._aliases: dict[int, tuple[nn.Parameter, Tensor, tuple[int, ...]]] = {}
        self._at: dict[int, int] = {}
        self._holders: dict[int, nn.Parameter] = {}
        self._has_copy = has_copy
        self.add(parameters)
        self._copies = Copies()
        self._written: set[int] = set()
        self._num_outer = len(_get_current_dispatch_mode_stack())
        self._looks = False

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look at these, too, from now on."""
        for p in parameters:
            if id(p) in self._aliases:
                continue
            # A parameter that is given other memory (`p.data = ...`) still has the old one under its alias.
            places = _memory(p)
            self._aliases[id(p)] = p, p.detach(), places
            self._at |= dict.fromkeys(places, id(p))
            self._holders |= {id(part): p for part in parts(p)}

    def resume(self) -> None:
        """Look from here on, unless the caller's code is inside a mode of its own, whose end would be confused, or
        inside of a backward, which puts its own stack of modes back."""
        is_free = not in_backward() and len(_get_current_dispatch_mode_stack()) == self._num_outer
        if not self._looks and self._at and is_free:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._looks = True

    def pause(self) -> None:
        stack = _get_current_dispatch_mode_stack()
        if self._looks and stack and stack[-1] is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._looks = False

    def stop(self) -> None:
        """Look no more."""
        self.pause()
        self._at.clear()

    def written(self) -> list[nn.Parameter]:
        """Parameters that were written to while it looked, or given other memory."""
        entries = self._aliases.items()
        return [p for number, (p, _, places) in entries if number in self._written or _memory(p) != places]

    def guards(self, parameter: nn.Parameter) -> bool:
        """Whether `restore` puts back what was written to it: a copy was made, or it has other memory now."""
        if id(parameter) not in self._aliases:
            return False
        _, alias, places = self._aliases[id(parameter)]
        return self._copies.holds(alias) or _memory(parameter) != places

    def restore(self) -> None:
        for parameter, alias, places in self._aliases.values():
            if _memory(parameter) != places:
                parameter.data = alias
        self._copies.restore()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_rehearsal():
            return func(*args, **kwargs)
        if any(kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ for kind in types):
            return NotImplemented  # DTensor and others first come down to plain tensors
        targets = [t for t in _written(func, args, kwargs) if not t.is_inference()]  # which have no version
        for tensor in targets:
            self._before_write(tensor)
        # Inside a mode torch._foreach_mul_ and its like raise no version; DTensor's is not that of its shard.
        counted = [*targets, *(self._holders[id(t)] for t in targets if id(t) in self._holders)]
        versions = [tensor._version for tensor in counted]
        out = func(*args, **kwargs)
        for tensor, version in zip(counted, versions, strict=True):
            if tensor._version == version:
                increment_version(tensor)
        return out

    def _before_write(self, tensor: Tensor) -> None:
        for number in {self._at[place] for place in _memory(tensor) if place in self._at} - self._written:
            self._written.add(number)
            parameter, alias, _ = self._aliases[number]
            if not self._has_copy(parameter):
                self._copies.add(alias)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The arguments that an operator writes to."""
    schema = getattr(func, "_schema", None)  # a higher-order operator has none
    if schema is None or not schema.is_mutable:
        return
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        target = args[i] if i < len(args) else kwargs.get(argument.name)
        for tensor in target if isinstance(target, (list, tuple)) else [target]:
            if isinstance(tensor, Tensor):
                yield tensor


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Which memory a tensor lies in."""
    found = (strided(part) for part in parts(tensor))
    return tuple(values.untyped_storage()._cdata for values in found if values is not None)
