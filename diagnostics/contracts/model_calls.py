"""Calls of a model, in steps and between them. Not by hooks: the model is copied and saved as if nobody watched."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn

Heard = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], AbstractContextManager[Any] | None]
"""Gets the model and the arguments of the call, before it; inside what it returns the call runs."""


class _Calls:
    """Stands in for `__call__` of the classes of some models, as long as somebody listens to one."""

    def __init__(self) -> None:
        self._heard: weakref.WeakKeyDictionary[nn.Module, list[Heard]] = weakref.WeakKeyDictionary()
        self._owners: dict[type, tuple[bool, Any]] = {}  # whether the class had its own, and which

    def listen(self, root: nn.Module, heard: Heard) -> None:
        if isinstance(root, torch.jit.ScriptModule):
            return
        self._heard.setdefault(root, []).append(heard)
        kind = type(root)
        if kind in self._owners:
            return
        original = kind.__call__
        self._owners[kind] = "__call__" in vars(kind), original
        listeners = self._heard

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(module, *args, **kwargs)
            around = [heard(module, args, kwargs) for heard in listeners.get(module, ())]
            with ExitStack() as stack:
                for one in around:
                    if one is not None:
                        stack.enter_context(one)
                return original(module, *args, **kwargs)

        kind.__call__ = call  # type: ignore[method-assign]

    def forget(self, root: nn.Module, heard: Heard) -> None:
        """It listens no more; the last one of a class puts everything back."""
        left = [one for one in self._heard.get(root, ()) if one is not heard]
        if left:
            self._heard[root] = left
            return
        self._heard.pop(root, None)
        kind = type(root)
        if kind not in self._owners or any(type(other) is kind for other in self._heard):
            return
        had_own, original = self._owners.pop(kind)
        if had_own:
            kind.__call__ = original  # type: ignore[method-assign]
        else:
            del kind.__call__


CALLS = _Calls()
