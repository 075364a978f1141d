"""What a running step shows of itself, noted without reading anything on the host."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.utils.clip_grad
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diagnostics.patching import before_backward, before_scale, before_scaler_step, replaced
from diagnostics.tensors import tensors_in
from diagnostics.watching.snapshot import OptimizerState, Randomness


@dataclass
class Observation:
    """Of one step. losses: one boolean scalar each, on its device. norm: a tensor until it is read.

    covered: id and version of the gradients that `norm` is of, as they were when it was computed or clipped with.
    before: copy of what the optimizer will change, where one is kept. leftover: parameters whose gradients were bad
    before the step, and these. buffer_versions: when buffers were last looked at. checks_states: optimizer states were
    written by somebody else since the last step. on_optimizer: called before any torch optimizer steps. stepped:
    optimizers of the watch that have stepped. any_stepped: any torch optimizer has. scaler_stepped: the gradient
    scaler was asked to step.
    """

    randomness: Randomness
    losses: list[Tensor] = field(default_factory=list)
    norm: float | Tensor | None = None
    covered: dict[int, int] = field(default_factory=dict)
    scaler: torch.amp.GradScaler | None = None
    scaler_stepped: bool = False
    any_stepped: bool = False
    stepped: list[Any] = field(default_factory=list)
    skipped: bool = False
    is_replayed: bool = False
    before: OptimizerState | None = None
    leftover: list[tuple[Any, Tensor]] = field(default_factory=list)
    buffer_versions: list[tuple[int, int]] = field(default_factory=list)
    checks_states: bool = False
    on_optimizer: Callable[[Any, Any, Any], Any] | None = None
    _scaler_before: list[Tensor | None] = field(default_factory=lambda: [None, None])

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Note the roots of backward, clipping and its norm, the gradient scaler and optimizers."""
        clip = torch.nn.utils.clip_grad
        with ExitStack() as stack:
            stack.enter_context(before_backward(self.note_losses))
            stack.enter_context(before_scale(self._note_scaler))
            stack.enter_context(before_scaler_step(self._note_scaler_step))
            stack.enter_context(replaced(clip, "_get_total_norm", self._seen_norm))
            stack.enter_context(replaced(clip, "_clip_grads_with_norm_", self._seen_clipping))
            stack.callback(register_optimizer_step_pre_hook(self._seen_optimizer).remove)
            yield

    def note_losses(self, tensors: Any) -> None:
        self.losses += [torch.isfinite(tensor.detach()).all() for tensor in tensors_in(tensors)]

    def moved(self, phase: str) -> bool:
        """Whether, at a trip in this phase, parameters may be others than before the step."""
        return bool(self.stepped) or phase == "optimizer"

    def covers(self, gradients: list[Tensor]) -> bool:
        """Whether the loop's own norm is of these gradients as they are now."""
        return isinstance(self.norm, Tensor) and all(self.covered.get(id(g)) == g._version for g in gradients)

    def restore_scaler(self) -> None:
        if self.scaler is not None:
            self.scaler._scale, self.scaler._growth_tracker = map(_copy, self._scaler_before)
            self.scaler._per_optimizer_states.clear()

    def _seen_norm(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def total_norm(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            self.norm = original(listed, *args, **kwargs)
            self.covered = {id(tensor): tensor._version for tensor in listed}
            return self.norm

        return total_norm

    def _seen_clipping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            gradients = [p.grad for p in listed if p.grad is not None]
            covered = self.covers(gradients)
            result = original(listed, *args, **kwargs)
            if covered:  # finite times finite: nothing new to see
                self.covered |= {id(gradient): gradient._version for gradient in gradients}
            return result

        return clip

    def _note_scaler(self, scaler: torch.amp.GradScaler) -> None:
        if self.scaler is None and scaler.is_enabled():
            self.scaler = scaler
            self._scaler_before = [_copy(scaler._scale), _copy(scaler._growth_tracker)]

    def _note_scaler_step(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler_stepped = self.scaler_stepped or scaler.is_enabled()

    def _seen_optimizer(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self.any_stepped = True
        return None if self.on_optimizer is None else self.on_optimizer(optimizer, args, kwargs)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
