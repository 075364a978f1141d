"""What a running step shows of itself, noted without reading anything on the host."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.utils.clip_grad
from torch import Tensor

from diagnostics.layers import tensors_in
from diagnostics.patching import replaced
from diagnostics.snapshot import OptimizerState, Randomness


@dataclass
class Observation:
    """Of one step. losses: one boolean scalar each, on its device. norm: a tensor until it is read.

    norm_covers: ids of the gradients that `norm` is of. before: copy of what the optimizer will change, where one is
    kept. checks_states: optimizer states were written by somebody else since the last step.
    """

    randomness: Randomness
    losses: list[Tensor] = field(default_factory=list)
    norm: float | Tensor | None = None
    norm_covers: set[int] = field(default_factory=set)
    scaler: torch.amp.GradScaler | None = None
    stepped: bool = False
    is_replayed: bool = False
    before: OptimizerState | None = None
    checks_states: bool = False
    _scaler_before: tuple[Tensor | None, Tensor | None] = (None, None)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Note the roots of backward, the norm of clipping and the gradient scaler."""
        with ExitStack() as stack:
            stack.enter_context(replaced(torch.autograd, "backward", self._seen_backward))
            stack.enter_context(replaced(torch.nn.utils.clip_grad, "_get_total_norm", self._seen_norm))
            stack.enter_context(replaced(torch.amp.GradScaler, "scale", self._seen_scale))
            yield

    def note_losses(self, tensors: Any) -> None:
        self.losses += [torch.isfinite(tensor.detach()).all() for tensor in tensors_in(tensors)]

    def restore_scaler(self) -> None:
        if self.scaler is not None:
            copies = (None if held is None else held.clone() for held in self._scaler_before)
            self.scaler._scale, self.scaler._growth_tracker = copies
            self.scaler._per_optimizer_states.clear()

    def _seen_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            self.note_losses(tensors)
            return original(tensors, *args, **kwargs)

        return backward

    def _seen_norm(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def total_norm(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            self.norm = original(listed, *args, **kwargs)
            self.norm_covers = {id(tensor) for tensor in listed}
            return self.norm

        return total_norm

    def _seen_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            if self.scaler is None and scaler.is_enabled():
                self.scaler = scaler
                held = (scaler._scale, scaler._growth_tracker)
                self._scaler_before = tuple(None if t is None else t.clone() for t in held)  # type: ignore[assignment]
            return original(scaler, outputs)

        return scale
