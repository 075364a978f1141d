"""What a running step shows of itself, noted without reading anything on the host."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
import torch.nn.utils.clip_grad
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from diagnostics.patching import before_backward, before_scale, before_scaler_step, replaced
from diagnostics.ranks import placed
from diagnostics.tensors import tensors_in, values_of

_VERSION = attrgetter("_version")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Check = Callable[[Any, list[Any]], None]
"""Gets an optimizer and the arguments of its `step`, which it may exchange in place."""


class Observation:
    """Of one step: losses, the norm of its gradients, which optimizers step, what a gradient scaler does."""

    loss: float | None
    """Sum of the scalars that were differentiated, the mean over processes, without a gradient scaler's factor; None
    before it was read."""

    grad_norm: float | None
    """L2 norm of all gradients before clipping, likewise."""

    def __init__(self) -> None:
        self.loss = self.grad_norm = None
        self._values: list[Tensor] = []  # () each: scalars that were differentiated
        self._is_euclidean = True  # the norm
        self._losses: list[Tensor] = []  # () bool each: whether it is finite
        self._norm: float | Tensor | None = None  # a tensor until it is read
        self._covered: list[int] = []  # ids of the gradients that the norm is of
        self._covered_versions: list[int] = []
        self._scaler: torch.amp.GradScaler | None = None
        self.unscaled: list[Tensor] = []
        """() each: whether a loss that a gradient scaler was given is finite; no scale can be blamed for one that is
        not."""
        self._scaler_was_asked = False  # to step or to update
        self._is_skipped = False
        self._any_stepped = False  # of torch's optimizers, known or not
        self._stepped: list[Any] = []

    @contextmanager
    def observing(
        self,
        before_optimizer: Callable[[Any, Any, Any], Any],
        after_optimizer: Callable[[], None],
        on_scaler: Callable[[torch.amp.GradScaler], None],
    ) -> Iterator[None]:
        """Note the roots of backward, clipping and its norm, the gradient scaler and optimizers.

        Args:
            before_optimizer: a hook before the `step` of any torch optimizer, known or not. after_optimizer: called
                after it. on_scaler: gets the gradient scaler in use, before it scales for the first time.
        """

        def note_scaler(scaler: torch.amp.GradScaler, losses: Any) -> None:
            if self._scaler is None and scaler.is_enabled():
                self._scaler = scaler
                on_scaler(scaler)
            if scaler.is_enabled():
                self.unscaled += [torch.isfinite(loss.detach()).all() for loss in values_of(tensors_in(losses))]

        def note_optimizer(optimizer: Any, args: Any, kwargs: Any) -> Any:
            self._any_stepped = True
            return before_optimizer(optimizer, args, kwargs)

        clip = torch.nn.utils.clip_grad
        with ExitStack() as stack:
            stack.enter_context(before_backward(self._note_roots))
            stack.enter_context(before_scale(note_scaler))
            stack.enter_context(before_scaler_step(self._note_scaler_step))
            stack.enter_context(replaced(clip, "_get_total_norm", self._seen_norm))
            stack.enter_context(replaced(clip, "_clip_grads_with_norm_", self._seen_clipping))
            stack.callback(register_optimizer_step_pre_hook(note_optimizer).remove)
            stack.callback(register_optimizer_step_post_hook(lambda *_: after_optimizer()).remove)
            yield

    # Losses

    def note_losses(self, tensors: Any) -> None:
        """Tensors of any shape, nested."""
        self._losses += [torch.isfinite(tensor.detach()).all() for tensor in tensors_in(tensors)]

    def _note_roots(self, tensors: Any) -> None:
        self.note_losses(tensors)
        self.note_values(tensors)

    def note_values(self, tensors: Any) -> None:
        """Scalars among these are losses of the step."""
        scale = None if self._scaler is None else self._scaler._scale
        scalars = [t for t in tensors_in(tensors) if t.numel() == 1 and t.is_floating_point()]
        for value in values_of(scalars):
            self._values.append(value.reshape(()) if scale is None else value.reshape(()) / scale.to(value.device))

    @property
    def has_values(self) -> bool:
        """Whether a scalar was differentiated."""
        return bool(self._values)

    def forget_values(self) -> None:
        """The loss is computed once more."""
        self._values = []

    def values(self, like: Tensor) -> list[Tensor]:
        """Of the dtype and on the device of `like`: (ranks,), the loss in this rank's place; empty without one."""
        return [placed(torch.stack([value.to(like) for value in self._values]).sum())] if self._values else []

    def note_read(self, losses: list[float], norm: float | None, *, again: bool) -> None:
        """They were read on the host.

        Args:
            losses: of each rank. norm: of the gradients of one optimizer, several add up; None where it is not known.
            again: they take the place of what was read before.
        """
        known = [loss for loss in losses if loss > -sys.float_info.max]
        self.loss = math.fsum(known) / len(known) if known else self.loss
        if norm is None or not self._is_euclidean:
            self.grad_norm = None
        else:
            self.grad_norm = norm if again or self.grad_norm is None else math.hypot(self.grad_norm, norm)

    def num_bad_losses(self, like: Tensor) -> Tensor:
        """() of the dtype and on the device of `like`: how many of the noted tensors hold NaN or Inf."""
        bad = [(~flag).to(like) for flag in self._losses]
        return torch.stack(bad).sum() if bad else torch.zeros_like(like)

    # The gradients' norm

    def note_norm(self, norm: float) -> None:
        """The loop has read it."""
        self._norm = norm

    def forget_norm(self) -> None:
        """Other gradients follow."""
        self._norm = None

    @property
    def norm_on_host(self) -> float | None:
        """The norm that the loop has read; None where it has read none."""
        return self._norm if isinstance(self._norm, float) else None

    def norm_of(self, gradients: list[Tensor]) -> Tensor | None:
        """(), the norm that the loop computed of these gradients as they are now; None where it has computed none."""
        if not isinstance(self._norm, Tensor) or not self._covers(gradients):
            return None
        return values_of([self._norm])[0].double()

    def _covers(self, gradients: list[Tensor]) -> bool:
        if not isinstance(self._norm, Tensor):
            return False
        ids, versions = _identities(gradients)
        if ids == self._covered:  # as a rule
            return versions == self._covered_versions
        known = dict(zip(self._covered, self._covered_versions, strict=True))
        return all(known.get(one) == version for one, version in zip(ids, versions, strict=True))

    def _seen_norm(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def total_norm(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            self._norm = original(listed, *args, **kwargs)
            self._is_euclidean = float((args or [kwargs.get("norm_type", 2.0)])[0]) == 2.0
            self._covered, self._covered_versions = _identities(listed)
            return self._norm

        return total_norm

    def _seen_clipping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            gradients = [gradient for p in listed if (gradient := p.grad) is not None]
            before = gradients[0]._version if gradients else 0
            result = original(listed, *args, **kwargs)
            if gradients:  # finite times finite: nothing new to see
                self._move_cover(gradients, gradients[0]._version - before)
            return result

        return clip

    def _move_cover(self, gradients: list[Tensor], num_writes: int) -> None:
        """Cover these gradients as they are now, if they were covered before so many writes to each."""
        ids, versions = _identities(gradients)
        if ids == self._covered:
            if versions == [version + num_writes for version in self._covered_versions]:
                self._covered_versions = versions
            return
        known = dict(zip(self._covered, self._covered_versions, strict=True))
        now = dict(zip(ids, versions, strict=True))
        if all(known.get(one, -1) + num_writes == version for one, version in now.items()):
            known |= now
            self._covered, self._covered_versions = list(known), list(known.values())

    # Steps

    def note_step(self, optimizer: Any) -> None:
        """A guarded optimizer steps."""
        self._stepped.append(optimizer)

    def note_skip(self) -> None:
        """The gradient scaler has made an optimizer skip the step."""
        self._is_skipped = True

    def has_stepped(self, optimizer: Any) -> bool:
        return optimizer in self._stepped

    @property
    def num_stepped(self) -> int:
        """How often guarded optimizers have."""
        return len(self._stepped)

    @property
    def any_has_stepped(self) -> bool:
        """Whether any guarded optimizer has."""
        return bool(self._stepped)

    @property
    def is_skipped(self) -> bool:
        """Whether the gradient scaler left the step out."""
        return self._is_skipped or (self._scaler_was_asked and not self._any_stepped)

    @property
    def accumulates_scaled(self) -> bool:
        """Whether scaled gradients are only added up; they may overflow until the scaler has found its scale."""
        return self._scaler is not None and not self._any_stepped

    def _note_scaler_step(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler_was_asked = self._scaler_was_asked or scaler.is_enabled()


@contextmanager
def before_each_step(
    optimizers: Iterable[Any], check: Check, after: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Call `check(optimizer, arguments)` before every `step` of these optimizers.

    An optimizer that has no hooks gets a `step` of its own for that; `after()` is called after it.
    """

    def hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return checked_arguments(check, optimizer, args, kwargs)

    def checked(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            values = [*args, *kwargs.values()]
            check(getattr(original, "__self__", original), values)
            result = original(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))
            after()
            return result

        return step

    with ExitStack() as stack:
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.Optimizer):
                stack.callback(optimizer.register_step_pre_hook(hook).remove)
            else:
                stack.enter_context(replaced(optimizer, "step", checked))
        yield


def checked_arguments(check: Check, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Arguments of an optimizer's `step` after `check` has seen them; the first is the optimizer."""
    values = [*args[1:], *kwargs.values()]
    check(optimizer, values)
    given = values[: len(args) - 1]
    return (args[0], *given), dict(zip(kwargs, values[len(given) :], strict=True))


def _identities(tensors: list[Tensor]) -> tuple[list[int], list[int]]:
    """Ids and versions; of thousands, several times a step."""
    return list(map(id, tensors)), list(map(_VERSION, tensors))
