"""Which optimizers a script makes, and when one of them steps: seen from outside, in torch's own classes."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from diagnostics import replaced

Around = Callable[[Any, Callable[[], Any]], Any]
"""Gets an optimizer (or a gradient scaler) and a call of its `step`, to be made once; returns what that returns."""


class OptimizerSteps:
    """Of the thread that makes it. Calls `around` in place of each `step` of an optimizer and of each `update` of a
    gradient scaler, the outermost where one stands in another; both may end a training step."""

    def __init__(self, around_step: Around, around_update: Around) -> None:
        self._around_step, self._around_update = around_step, around_update
        self._thread = threading.get_ident()
        self._made: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._classes: list[tuple[type, Any]] = []
        self._is_inside = False
        self.is_in_scaler = False
        """Whether a gradient scaler makes an optimizer step."""
        self.num_elsewhere = 0
        """Steps in other threads, which nobody looks at."""

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that were made and are still there."""
        return list(self._made)

    @contextmanager
    def seen(self) -> Iterator[None]:
        """The script runs inside."""
        scaler = torch.amp.GradScaler
        try:
            with (
                replaced(torch.optim.Optimizer, "__init__", self._noting),
                replaced(scaler, "step", self._in_scaler),
                replaced(scaler, "update", lambda original: self._surrounded(original, self._around_update)),
            ):
                yield
        finally:
            for owner, original in self._classes:
                owner.step = original  # type: ignore[attr-defined]
            self._classes.clear()

    def _noting(self, original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def made(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._made.add(optimizer)
            self._surround_class(type(optimizer))

        return made

    def _in_scaler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def step(scaler: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> Any:
            self.is_in_scaler = scaler.is_enabled()
            try:
                return original(scaler, *args, **kwargs)
            finally:
                self.is_in_scaler = False

        return step

    def _surround_class(self, kind: type) -> None:
        owner = next((one for one in kind.__mro__ if "step" in vars(one)), None)
        if owner is None or owner is torch.optim.Optimizer or any(owner is known for known, _ in self._classes):
            return
        original = vars(owner)["step"]
        self._classes.append((owner, original))
        owner.step = self._surrounded(original, self._around_step)  # type: ignore[attr-defined]

    def _surrounded(self, original: Callable[..., Any], around: Around) -> Callable[..., Any]:
        @wraps(original)  # with the mark by which torch knows that its own hooks are there
        def step(owner: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_inside or threading.get_ident() != self._thread:
                self.num_elsewhere += not self._is_inside
                return original(owner, *args, **kwargs)
            self._is_inside = True
            try:
                return around(owner, lambda: original(owner, *args, **kwargs))
            finally:
                self._is_inside = False

        return step

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Inside, calls are made as they come."""
        before, self._is_inside = self._is_inside, True
        try:
            yield
        finally:
            self._is_inside = before
