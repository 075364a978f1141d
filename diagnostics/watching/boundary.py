"""The checks of one step: bad values are met before anything bad is kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.patching import after_gradients, is_closure
from diagnostics.ranks import on_any, worst
from diagnostics.tensors import all_finite, any_bad, magnitude, read_any, tensors_in, values_of
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.journal import Journal
from diagnostics.watching.observation import Observation, before_each_step, checked_arguments
from diagnostics.watching.policy import Policy
from diagnostics.watching.safety import LARGEST_GRADIENT, states_are_sound
from diagnostics.watching.skips import Skips
from diagnostics.watching.surroundings import Surroundings
from diagnostics.watching.trip import BufferTrip, SkipTrip, Trip
from diagnostics.watching.undo import Undo

_OTHERS = "the step changes parameters or buffers other than its optimizer's"
_OWN = "the step writes to its optimizer's parameters after the optimizer has stepped"


class Boundary:
    """Of one step, which runs inside `watching` and is followed by `after_step`; each of them may raise `Trip`."""

    def __init__(
        self,
        guarded: Guarded,
        policy: Policy,
        skips: Skips,
        surroundings: Surroundings,
        *,
        adopts: bool,
        may_look: bool,
        journal: Journal | None = None,
    ) -> None:
        """Copies what has to be copied before the step.

        Args:
            surroundings: generators and counters that the step may change.
            adopts: optimizers that step are guarded from then on. may_look: this step may take longer than others, to
                see what it writes to. journal: is told when the optimizers move.
        """
        self._journal = journal
        self._guarded, self._policy, self._skips, self._adopts = guarded, policy, skips, adopts
        self.undo = Undo(guarded, surroundings)
        self._seen = Observation()
        self._checks_states = guarded.states_were_written()
        self._buffer_versions: list[tuple[int, int]] = []  # when buffers were last looked at
        self._moved_versions: dict[int, int] | None = None  # of parameters, when the optimizers had stepped
        guarded.note_begin(self.undo.versions)
        if policy.allows_copies:
            self.undo.copy_others()
        if not guarded.optimizers and policy.reason is not None:
            self.undo.copy()
        if guarded.is_new and guarded.idle and policy.allows_copies:  # the first step shows what else it writes to
            self.undo.copy()
        looks = policy.allows_copies and (guarded.is_new or (may_look and policy.reason is not None))
        self._first_writes = self.undo.first_writes() if looks else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The step runs inside."""
        with ExitStack() as stack:
            if self._first_writes is not None:
                stack.callback(self._first_writes.stop)
                if not self._guarded.optimizers:
                    stack.enter_context(after_gradients(self._look))
            stack.enter_context(self.undo.keeping())
            seen = self._seen.observing(self._on_optimizer, self._after_optimizer, self.undo.keep_scaler)
            stack.enter_context(seen)
            hookable = self._guarded.bare_optimizers()
            stack.enter_context(before_each_step(hookable, self._before_optimizer, self._after_optimizer))
            yield

    def note(self, loss: float, grad_norm: float) -> None:
        """The loop has read its loss and gradient norm."""
        self._seen.note_norm(grad_norm)
        self._seen.loss, self._seen.grad_norm = loss, grad_norm
        phase, text = noted_phase(loss, grad_norm), noted_text(loss, grad_norm)
        if phase is not None:
            raise Trip(phase, text, by=self)

    def is_undoable(self, trip: Trip) -> bool:
        """Whether all that the step has changed can be put back. Reads on the host."""
        return self.undo.is_complete(moved=self._seen.any_has_stepped or trip.phase == "optimizer")

    @property
    def seen(self) -> Observation:
        """What the step has shown."""
        return self._seen

    @property
    def num_stepped(self) -> int:
        """How often guarded optimizers have stepped."""
        return self._seen.num_stepped

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
        self.undo.optimizer_was_asked = True
        if self._first_writes is not None:
            self._first_writes.pause()
        closures = [i for i, value in enumerate(arguments) if is_closure(value)]
        if self._seen.has_stepped(optimizer):
            self._policy.learn("the optimizer steps several times in the callable")
        if not closures and not self._gradients_are_finite(optimizer):
            self._seen.note_skip()  # the scaler will make the optimizer leave this step out
            return
        self._skips.take()
        if not self._seen.any_has_stepped and not self.undo.has_copies and self._needs_copies(optimizer):
            self.undo.copy()
        if self._journal is not None and not self._seen.any_has_stepped:
            self._journal.before_update()
        if not closures:
            self._seen.note_step(optimizer)
        for i in closures:  # gradients exist when it returns; a first call of it comes before any change
            arguments[i] = self._checked_closure(arguments[i], optimizer)

    def _needs_copies(self, optimizer: Any) -> bool:
        if self._policy.reason is not None:  # now: the loop may have set the rate of this step
            return True
        if self._guarded.is_new and self._policy.allows_copies and self._guarded.fits_copy():
            return True  # nobody knows yet what follows in the step
        return self._checks_states and on_any(not states_are_sound(optimizer))  # what comes of it is seen afterwards

    def _checked_closure(self, closure: Callable[[], Any], optimizer: Any) -> Callable[[], Any]:
        def checked() -> Any:
            self._seen.forget_values()
            result = closure()
            self._gradients_are_finite(optimizer, again=self._seen.loss is not None)
            self._seen.note_step(optimizer)
            self._seen.forget_norm()  # a next call has other gradients
            return result

        return checked

    def _gradients_are_finite(self, optimizer: Any = None, *, again: bool = False) -> bool:
        """Read the joint norm of all gradients, the losses and their flag. False where a gradient scaler found overflow
        and has made a fused optimizer skip.

        Args:
            again: the loss and its gradients were computed once more.

        Raises:
            Trip: something is not finite, here or on another rank.
        """
        if self._seen.norm_on_host is not None:
            if self._guarded.buffers.current() or self._guarded.written:
                self._check_writes_ahead(*worst(torch.stack(self._flags_ahead())))
            self._copy_if_huge(self._seen.norm_on_host)
            return True
        held = self._guarded.gradients(optimizer)
        by_loop = self._seen.norm_of(held)
        gradients = [] if by_loop is not None else values_of(held)
        norm = magnitude(gradients) if by_loop is None else by_loop
        overflow = getattr(optimizer, "found_inf", None)
        found_inf = overflow.detach().to(norm) if isinstance(overflow, Tensor) else torch.zeros_like(norm)
        ahead = [flag.to(norm) for flag in self._flags_ahead()]
        scale = getattr(optimizer, "grad_scale", None)  # which a fused optimizer takes out itself
        factor = scale.detach().to(norm) if isinstance(scale, Tensor) else torch.ones_like(norm)
        flags = [self._seen.num_bad_losses(like=norm), norm, found_inf, factor, *ahead]
        numbers = [flag.reshape(1) for flag in flags] + self._seen.values(like=norm)
        num_bad_losses, norm_value, skips, factor_value, *others = worst(torch.cat(numbers))
        bad, losses = others[: len(ahead)], others[len(ahead) :]
        is_of_all = by_loop is not None or not any(hasattr(gradient, "to_local") for gradient in held[:1])
        self._seen.note_read(losses, norm_value / factor_value if is_of_all else None, again=again)
        if num_bad_losses:
            raise Trip("loss", "the loss is not finite", by=self)
        if skips:
            return False
        if not math.isfinite(norm_value) and (by_loop is not None or on_any(any_bad(gradients))):
            raise Trip("backward", f"the gradient norm is {norm_value:g}", by=self)
        self._check_writes_ahead(*bad)
        self._copy_if_huge(norm_value)
        return True

    def _bad_buffers_flag(self) -> Tensor:
        """() float64 on the buffers' device: 0 where all are sound."""
        return (~self._guarded.buffers.are_sound()).double()

    def _flags_ahead(self) -> list[Tensor]:
        """() float64 each, on one device: 0 where buffers are sound, and where parameters that the step writes to
        other than by an optimizer are finite."""
        buffers = self._bad_buffers_flag()
        return [buffers, (~all_finite(self._guarded.written)).to(buffers)]

    def _check_writes_ahead(self, bad_buffers: float, bad_parameters: float) -> None:
        if bad_parameters:
            raise Trip(
                "forward", "a parameter that no optimizer trains, and the step writes to, is not finite", by=self
            )
        if bad_buffers:
            raise BufferTrip("forward", "a buffer is not finite", by=self)
        self._buffer_versions = self._guarded.buffers.versions()

    def _copy_if_huge(self, norm: float) -> None:
        huge = not math.isfinite(norm) or norm > LARGEST_GRADIENT  # inf: its squares overflow, it does not
        self._guarded.is_in_doubt |= huge
        if huge and self._policy.allows_copies and not self._seen.any_has_stepped:
            self.undo.copy()

    # After an optimizer has moved

    def _after_optimizer(self) -> None:
        if all(self._seen.has_stepped(optimizer) for optimizer in self._guarded.bare_optimizers()):
            self._moved_versions = self._guarded.versions()
            if self._journal is not None:
                self._journal.after_update()
            self._look()

    def _look(self) -> None:
        """What follows in the step may write to parameters that no copy is kept of."""
        if self._first_writes is not None and self.undo.has_copies:
            self._first_writes.add(self._guarded.trained())
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
            if not self._seen.has_values:
                self._seen.note_values(scalars)
            self._gradients_are_finite()
        if self._guarded.steps_outside:
            self._check_steps_outside()
        self._check_writes_beside()
        self._guarded.note_versions(self._guarded.versions(), has_stepped=self._seen.any_has_stepped)
        if self.undo.has_copies:
            kept = self._guarded.values()
            norm = worst(magnitude(kept)[None])[0]
            if not math.isfinite(norm) and on_any(any_bad(kept)):
                raise Trip(
                    "optimizer", "parameters, optimizer state or averages are not finite after the step", by=self
                )

    def _check_steps_outside(self) -> None:
        """What an optimizer did between the last step and this one, where it can make bad values of finite ones."""
        if not self._guarded.is_in_doubt and self._policy.why_unsafe is None:
            return
        kept = self._guarded.values()
        norm = worst(magnitude(kept)[None])[0]
        if not math.isfinite(norm) and on_any(any_bad(kept)):
            raise Trip("state", "parameters or optimizer state are not finite before the step", by=self)

    def _check_losses(self, scalars: list[Tensor]) -> None:
        if on_any(any_bad(values_of(scalars)) or read_any(~flag for flag in self._seen.unscaled)):
            raise Trip("loss", "the loss is not finite", by=self)

    def _after_skip(self, scalars: list[Tensor]) -> None:
        """A gradient scaler left the step out. That is how it finds its scale, unless the loss is bad or it goes on."""
        self._check_losses(scalars)
        scale = self.undo.scale
        if self._skips.asks(scale):
            raise SkipTrip("backward", "the gradient scaler leaves out steps again and again", by=self)
        self._skips.count(scale)
        if self._skips.are_too_many:
            raise Trip("backward", self._skips.text(scale), by=self)

    def _check_writes_beside(self) -> None:
        """What the step changed other than by its optimizers' steps: an average, a counter, a buffer, or the very
        parameters of the optimizers once these had stepped.

        Seen once, it is copied from the next step on: alone where it was written before the optimizers moved, with all
        that they change where it comes after, for by then they could not be undone.
        """
        stepped = self._seen.any_has_stepped
        buffers_changed = stepped and self._buffer_versions != self._guarded.buffers.versions()
        if buffers_changed and worst(self._bad_buffers_flag()[None])[0]:
            self._policy.learn(_OTHERS)
            raise BufferTrip("ema", "a buffer is not finite after the step", by=self)
        late = self._written_late()
        foreign_late = self._guarded.not_trained(late)
        is_foreign = {id(p) for p in foreign_late}
        own_late = [p for p in late if stepped and id(p) not in is_foreign]
        written = self.undo.written(self._guarded.idle if stepped else self._guarded.parameters)
        changed = self._guarded.not_trained(written) if stepped else written
        known = {id(p) for p in self._guarded.written} - is_foreign  # and looked at before the optimizers moved
        self._guarded.learn([*written, *foreign_late])
        if own_late:
            self._policy.learn(_OWN)
        elif self._guarded.optimizers and foreign_late and not self._guarded.are_counters(foreign_late):
            self._policy.learn(_OTHERS)
        unseen = [p for p in changed if not stepped or id(p) not in known]
        if (unseen or own_late) and not self.undo.has_copies and on_any(any_bad(values_of([*unseen, *own_late]))):
            raise Trip("optimizer" if own_late or not stepped else "ema", _OWN if own_late else _OTHERS, by=self)

    def _written_late(self) -> list[nn.Parameter]:
        """Parameters that were written to after all optimizers had stepped, or, in a loop without, after backward."""
        moved = self._moved_versions
        by_version = [] if moved is None else self._guarded.written_since(moved)
        return list({id(p): p for p in [*by_version, *self.undo.written_first()]}.values())


def noted_phase(loss: float, grad_norm: float) -> str | None:
    """Phase of what is not finite among the numbers that a loop has read; None where both are finite."""
    if math.isfinite(loss):
        return None if math.isfinite(grad_norm) else "backward"
    return "loss"


def noted_text(loss: float, grad_norm: float) -> str:
    return f"loss {loss:.6g}, gradient norm {grad_norm:.6g}"
