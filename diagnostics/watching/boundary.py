"""The checks of one step: bad values are met before anything bad is kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.patching import after_gradients
from diagnostics.ranks import on_any, worst
from diagnostics.tensors import any_bad, magnitude, tensors_in, values_of
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.observation import Observation, before_each_step, checked_arguments
from diagnostics.watching.policy import Policy
from diagnostics.watching.safety import LARGEST_GRADIENT, states_are_sound
from diagnostics.watching.undo import Undo

_OTHERS = "the step changes parameters or buffers other than its optimizer's"


class Trip(BaseException):
    """Unwinds the caller's step. Not an Exception: a loop's own `except Exception` must not swallow it."""

    def __init__(self, phase: str, text: str) -> None:
        super().__init__(text)
        self.phase, self.text = phase, text


class BufferTrip(Trip):
    """A buffer that is not finite. Infinity may be meant there: a mask, a running extreme."""


@dataclass
class Skips:
    """Steps that a gradient scaler left out."""

    limit: int
    """So many in a row are a finding."""
    total: int = 0
    in_a_row: int = 0

    def count(self) -> None:
        self.total += 1
        self.in_a_row += 1

    @property
    def are_too_many(self) -> bool:
        return self.in_a_row >= self.limit


class Boundary:
    """Of one step, which runs inside `watching` and is followed by `after_step`; each of them may raise `Trip`."""

    def __init__(self, guarded: Guarded, policy: Policy, skips: Skips, *, adopts: bool, may_look: bool) -> None:
        """Copies what has to be copied before the step.

        Args:
            adopts: optimizers that step are guarded from then on. may_look: this step may take longer than others, to
                see what it writes to.
        """
        self._guarded, self._policy, self._skips, self._adopts = guarded, policy, skips, adopts
        self.undo = Undo(guarded)
        self._seen = Observation()
        self._checks_states = guarded.states_were_written
        self._buffer_versions: list[tuple[int, int]] = []  # when buffers were last looked at
        if not guarded.optimizers and policy.reason is not None:
            self.undo.copy()
        if guarded.is_new:  # the first step shows what else the callable writes to
            if guarded.idle and policy.allows_copies:
                self.undo.copy()
            self.undo.keep_bad_gradients()
        looks = policy.allows_copies and (guarded.is_new or (may_look and policy.reason is not None))
        self._first_writes = self.undo.first_writes() if looks and guarded.unguarded() else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The step runs inside."""
        with ExitStack() as stack:
            if self._first_writes is not None:
                stack.callback(self._first_writes.stop)
                if not self._guarded.optimizers:
                    stack.enter_context(after_gradients(self._look))
            seen = self._seen.observing(self._on_optimizer, self._after_optimizer, self.undo.keep_scaler)
            stack.enter_context(seen)
            hookable = self._guarded.bare_optimizers()
            stack.enter_context(before_each_step(hookable, self._before_optimizer, self._after_optimizer))
            yield

    def note(self, loss: float, grad_norm: float) -> None:
        """The loop has read its loss and gradient norm."""
        self._seen.note_norm(grad_norm)
        phase, text = noted_phase(loss, grad_norm), noted_text(loss, grad_norm)
        if phase is not None:
            raise Trip(phase, text)

    def is_undoable(self, trip: Trip) -> bool:
        """Whether all that the step has changed can be put back. Reads on the host."""
        return self.undo.is_complete(moved=self._seen.any_has_stepped or trip.phase == "optimizer")

    # Before an optimizer moves

    def _on_optimizer(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any of torch's steps. In a loop that gave the watch none it is guarded from here on."""
        if not self._adopts or not self._guarded.adopt(optimizer):
            return None
        if not self._seen.any_has_stepped:
            self.undo.copy(again=True)
        return checked_arguments(self._before_optimizer, optimizer, args, kwargs)

    def _before_optimizer(self, optimizer: Any, arguments: list[Any]) -> None:
        """Loss, gradients, norm and buffers are finite, or nothing moves."""
        if self._first_writes is not None:
            self._first_writes.pause()
        closures = [i for i, value in enumerate(arguments) if callable(value)]
        if self._seen.has_stepped(optimizer) and not self.undo.has_copies:
            self._policy.learn("the optimizer steps several times in the callable")
        if not closures and not self._gradients_are_finite(optimizer):
            self._seen.note_skip()  # the scaler will make the optimizer leave this step out
            return
        self._skips.in_a_row = 0
        if not self._seen.any_has_stepped and not self.undo.has_copies and self._needs_copies(optimizer):
            self.undo.copy()
        if not closures:
            self._seen.note_step(optimizer)
        for i in closures:  # gradients exist when it returns; a first call of it comes before any change
            arguments[i] = self._checked_closure(arguments[i], optimizer)

    def _needs_copies(self, optimizer: Any) -> bool:
        if self._policy.reason is not None:  # now: the loop may have set the rate of this step
            return True
        return self._checks_states and on_any(not states_are_sound(optimizer))  # what comes of it is seen afterwards

    def _checked_closure(self, closure: Callable[[], Any], optimizer: Any) -> Callable[[], Any]:
        def checked() -> Any:
            result = closure()
            self._gradients_are_finite(optimizer)
            self._seen.note_step(optimizer)
            self._seen.forget_norm()  # a next call has other gradients
            return result

        return checked

    def _gradients_are_finite(self, optimizer: Any = None) -> bool:
        """Read the joint norm of all gradients and the losses' flag. False where a gradient scaler found overflow and
        has made a fused optimizer skip.

        Raises:
            Trip: something is not finite, here or on another rank.
        """
        if self._seen.norm_on_host is not None:
            if self._guarded.buffers.current():
                self._check_buffers(worst(self._bad_buffers_flag()[None])[0])
            self._copy_if_huge(self._seen.norm_on_host)
            return True
        held = self._guarded.gradients(optimizer)
        by_loop = self._seen.norm_of(held)
        gradients = [] if by_loop is not None else values_of(held)
        norm = magnitude(gradients) if by_loop is None else by_loop
        overflow = getattr(optimizer, "found_inf", None)
        found_inf = overflow.detach().to(norm) if isinstance(overflow, Tensor) else torch.zeros_like(norm)
        flags = [self._seen.num_bad_losses(like=norm), norm, self._bad_buffers_flag().to(norm), found_inf]
        num_bad_losses, norm_value, bad_buffers, skips = worst(torch.stack([flag.reshape(()) for flag in flags]))
        if num_bad_losses:
            raise Trip("loss", "the loss is not finite")
        if skips:
            return False
        if not math.isfinite(norm_value) and (by_loop is not None or on_any(any_bad(gradients))):
            raise Trip("backward", f"the gradient norm is {norm_value:g}")
        self._check_buffers(bad_buffers)
        self._copy_if_huge(norm_value)
        return True

    def _bad_buffers_flag(self) -> Tensor:
        """() float64 on the buffers' device: 0 where all are sound."""
        return (~self._guarded.buffers.are_sound()).double()

    def _check_buffers(self, num_bad: float) -> None:
        if num_bad:
            raise BufferTrip("forward", "a buffer is not finite")
        self._buffer_versions = self._guarded.buffers.versions()

    def _copy_if_huge(self, norm: float) -> None:
        huge = not math.isfinite(norm) or norm > LARGEST_GRADIENT  # inf: its squares overflow, it does not
        if huge and self._policy.allows_copies and not self._seen.any_has_stepped:
            self.undo.copy()

    # After an optimizer has moved

    def _after_optimizer(self) -> None:
        if all(self._seen.has_stepped(optimizer) for optimizer in self._guarded.bare_optimizers()):
            self._look()

    def _look(self) -> None:
        """What follows in the step may write to parameters that no copy is kept of."""
        if self._first_writes is not None and self.undo.has_copies:
            self._first_writes.resume()

    def after_step(self, result: Any) -> None:
        """The step has ended and returned `result`: a loss, or a container whose scalars are losses.

        Raises:
            Trip: it is not finite, or the step has changed something for the worse.
        """
        scalars = [tensor for tensor in tensors_in(result) if tensor.numel() == 1]
        if self._seen.is_skipped:
            self._after_skip(scalars)
        elif self._seen.accumulates_scaled:
            self._check_losses(scalars)
        elif not self._seen.any_has_stepped:
            self._seen.note_losses(scalars)
            self._gradients_are_finite()
        self._check_writes_beside()
        if self.undo.has_copies:
            kept = self._guarded.values()
            norm = worst(magnitude(kept)[None])[0]
            if not math.isfinite(norm) and on_any(any_bad(kept)):
                raise Trip("optimizer", "parameters, optimizer state or averages are not finite after the step")

    def _check_losses(self, scalars: list[Tensor]) -> None:
        if on_any(any_bad(values_of(scalars))):
            raise Trip("loss", "the loss is not finite")

    def _after_skip(self, scalars: list[Tensor]) -> None:
        """A gradient scaler left the step out. That is how it finds its scale, unless the loss is bad or it goes on."""
        self._check_losses(scalars)
        self._skips.count()
        if self._skips.are_too_many:
            raise Trip("backward", f"the gradient scaler skipped {self._skips.in_a_row} steps in a row")

    def _check_writes_beside(self) -> None:
        """What else than the optimizers' own parameters the step changed, an average or a buffer.

        Seen once, it is copied with the rest from the next step on.
        """
        stepped = self._seen.any_has_stepped
        buffers_changed = stepped and self._buffer_versions != self._guarded.buffers.versions()
        if buffers_changed and worst(self._bad_buffers_flag()[None])[0]:
            self._policy.learn(_OTHERS)
            raise BufferTrip("ema", "a buffer is not finite after the step")
        written = self.undo.written(self._guarded.idle if stepped else self._guarded.parameters)
        self._guarded.learn([*written, *self.undo.written_first()])
        changed = self._guarded.not_trained(written) if stepped else written
        if changed and self._guarded.optimizers:
            self._policy.learn(_OTHERS)
        if changed and not self.undo.has_copies and on_any(any_bad(values_of(changed))):
            raise Trip("ema" if stepped else "optimizer", _OTHERS)


def noted_phase(loss: float, grad_norm: float) -> str | None:
    """Phase of what is not finite among the numbers that a loop has read; None where both are finite."""
    if math.isfinite(loss):
        return None if math.isfinite(grad_norm) else "backward"
    return "loss"


def noted_text(loss: float, grad_norm: float) -> str:
    return f"loss {loss:.6g}, gradient norm {grad_norm:.6g}"
