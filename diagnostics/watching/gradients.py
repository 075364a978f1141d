"""Gradients that were there before a step: the step is one micro-batch of an accumulation, and adds to them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
import torch.nn.utils.clip_grad
from torch import Tensor

from diagnostics.patching import before_backward, replaced
from diagnostics.watching.guarded import Guarded


class Gradients:
    """Copied right before the step first adds to them, scales or clips them: one gradient's memory while it runs.

    A step that drops its gradients first (`zero_grad`) costs no copy, nor does one that begins without any. Undone,
    all gradients are dropped but for those that were copied, which have the values and the memory they had.
    """

    def __init__(self, guarded: Guarded) -> None:
        """Notes which there are; nothing is copied yet."""
        self._guarded = guarded
        holders = guarded.with_gradients()
        grads = list(map(attrgetter("grad"), holders))  # thousands
        # Not the tensors themselves: they would outlive their `zero_grad`.
        self._before = [
            (holder, id(grad), grad._version) for holder, grad in zip(holders, grads, strict=True) if grad is not None
        ]
        self._kept: list[tuple[Any, Tensor, Tensor]] | None = None if self._before else []
        self._written: list[Tensor] = []

    @property
    def are_kept(self) -> bool:
        """Whether there is a copy of any."""
        return bool(self._kept)

    @property
    def were_there(self) -> bool:
        """Whether the step began with any."""
        return bool(self._before)

    @property
    def were_changed(self) -> bool:
        """Whether the step wrote to some before they could be copied. As `zero_grad(set_to_none=False)` does, too."""
        return bool(self._written)

    @contextmanager
    def before_changes(self) -> Iterator[None]:
        """Copy them once the step that runs inside is about to change them."""
        with ExitStack() as stack:
            if self._kept is None:
                stack.enter_context(before_backward(lambda roots: self.keep()))
                stack.enter_context(replaced(torch.nn.utils.clip_grad, "_clip_grads_with_norm_", self._kept_first))
                for name in ("_unscale_grads_", "step"):
                    stack.enter_context(replaced(torch.amp.GradScaler, name, self._kept_first))
            yield

    def _kept_first(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.keep()
            return original(*args, **kwargs)

        return run

    def keep(self) -> None:
        """Copy those that are still as they were. Only the first call does anything."""
        if self._kept is not None:
            return
        self._kept = []
        for holder, identity, version in self._before:
            grad = holder.grad
            if grad is None or id(grad) != identity:
                continue
            if grad._version == version:
                self._kept.append((holder, grad, grad.detach().clone()))
            else:
                self._written.append(grad.detach())

    @torch.no_grad()
    def restore(self) -> None:
        """Put back those that were copied; all others are dropped. May be called several times."""
        self.keep()
        for holder in self._guarded.with_gradients():
            holder.grad = None
        for holder, grad, copy in self._kept or ():
            if grad.layout is torch.strided:
                grad.detach().copy_(copy)
                holder.grad = grad
            else:
                holder.grad = copy.clone()
