"""Full-speed training steps that stop before a non-finite value is kept, and then say where it was born.

A healthy step costs one joint norm of the gradients (none where the loop clips: its norm is used) and one read of a
device flag, made before the optimizer step. On a trip the same step runs again, from the same parameters, buffers
and randomness, under `explain`.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from diagnostics.errors import NonFiniteError
from diagnostics.incidents import write_incident
from diagnostics.modules import models_in, optimizers_in
from diagnostics.patching import replaced
from diagnostics.ranks import agreed, on_any, rank, worst
from diagnostics.statistics import LayerStatistics, TensorStatistics
from diagnostics.tensors import any_bad, magnitude, tensors_in, values_of
from diagnostics.tracing import Explanation
from diagnostics.verdict import Verdict
from diagnostics.watching.guarded import Inventory
from diagnostics.watching.observation import Observation
from diagnostics.watching.safety import LARGEST_GRADIENT, states_are_sound, why_unsafe
from diagnostics.watching.snapshot import Randomness

Result = TypeVar("Result")
Undo = Literal["auto", "always", "never"]
_BESIDE = "the step changes parameters or buffers beside its optimizer's"
_ONE_AT_A_TIME = threading.RLock()  # a step is observed through functions of torch, of which there is one


class _Trip(BaseException):
    """Unwinds the caller's step. Not an Exception: a loop's own `except Exception` must not swallow it."""

    def __init__(self, phase: str, text: str) -> None:
        super().__init__(text)
        self.phase, self.text = phase, text


class _StopReplay(BaseException):
    """Ends a replay before an optimizer step that could not be undone."""


class _BufferTrip(_Trip):
    """A buffer that is not finite. Infinity may be meant there: a mask, a running extreme."""


class Watch:
    """Watches every training step of a loop (contract C6).

        watch = Watch(model, optimizer, incidents="incidents")
        for batch in loader:
            loss = watch.step(lambda: train_one(batch), batch=batch)

    The callable does one whole optimizer step: forward, backward, clipping, `optimizer.step()`. It is called again
    on a trip, so it must not consume its batch. Undone are parameters, buffers, optimizer states, averages, a gradient
    scaler and the randomness of torch, Python and NumPy; not what else the callable changes, such as learning-rate
    schedulers and generators of its own. Gradients are dropped. Threads take turns.

    Args:
        model: a module or several. optimizer: what steps inside the callable, one or several of any class with a
            `step` method; None for a loop that updates by hand. Without it, torch's are noticed when they step.
        statistics_every: steps between full statistics of every layer (`layers` after such a step); 0 for never.
            Modules that come or go are noticed then, and at `attach`.
        incidents: folder for `step-XXXXXXXX` folders; None writes none.
        averages: tensors of weight averages that the step updates. They are checked after every step, for which
            everything is copied before it; see `safe_averages`.
        safe_averages: averages whose update keeps them finite where the parameters are (a decay between 0 and 1, not
            in float16). They are undone, and checked where copies are kept, but cause no copy.
        undo: `auto` copies parameters and optimizer state before a step only where the optimizer could make
            non-finite values of finite gradients (`undo_reason` says why: half parameters, an unknown optimizer, an
            odd eps, several optimizers): one copy in time and memory. `always` and `never` do as they say.
        max_consecutive_skips: a gradient scaler that skips this many steps in a row is a finding.

    Attributes:
        layers: statistics of the last step that measured them, as `LayerStatistics.collect` gives them.
        on_trip: called before a step that tripped is repeated, which takes many times as long.
        num_skipped, skips_in_a_row: steps that a gradient scaler left out, in all and just now; set them on resume.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Any = None,
        *,
        statistics_every: int = 50,
        incidents: Path | str | None = "incidents",
        averages: Iterable[Tensor] = (),
        safe_averages: Iterable[Tensor] = (),
        undo: Undo = "auto",
        max_consecutive_skips: int = 20,
    ) -> None:
        if undo not in get_args(Undo):
            raise ValueError(f"undo: one of {', '.join(get_args(Undo))}, not {undo!r}")
        if statistics_every < 0 or max_consecutive_skips < 1:
            raise ValueError("statistics_every: 0 or more; max_consecutive_skips: 1 or more")
        self._models = models_in(model)
        self._optimizers = optimizers_in(optimizer)
        self._adopts = not self._optimizers
        self._averages, self._safe_averages = list(averages), list(safe_averages)
        self._guarded = Inventory(self._models, self._optimizers, [*self._averages, *self._safe_averages])
        self._every = statistics_every
        self.incidents = None if incidents is None else Path(incidents)
        self._undo = undo
        self._max_skips = max_consecutive_skips
        self._layers = [LayerStatistics(one) for one in self._models]
        self._attached = True
        self._running = False
        self._versions: list[tuple[int, int]] | None = None
        self._learned: str | None = None  # why copies are kept, learned from a step that showed it
        self._num_steps = 0
        self.skips_in_a_row = 0
        self.layers: dict[str, dict[str, TensorStatistics]] = {}
        self.num_skipped = 0
        self.on_trip: Callable[[], None] | None = None
        self._seen = Observation(Randomness())

    @property
    def undo_reason(self) -> str | None:
        """Why parameters and state are copied before each step; None where they are not."""
        if self._undo != "auto":
            return "asked for" if self._undo == "always" else None
        if not self._optimizers:
            return "the update is not an optimizer's"
        if len(self._optimizers) > 1:
            return "a second optimizer steps after the first has changed its parameters"
        if self._averages:
            return "averages are updated by the loop"
        if any(average.dtype is torch.float16 for average in self._safe_averages):
            return "averages are float16"
        return self._learned or why_unsafe(self._optimizers[0])

    def attach(self) -> None:
        """Watch again (the state after construction)."""
        self._attached = True
        self._versions = None
        self._guarded.renew()
        for layers in self._layers:
            layers.attach()

    def detach(self) -> None:
        """Take every hook off; `step` only calls its callable until `attach`."""
        self._attached = False
        for layers in self._layers:
            layers.detach()

    def is_due(self, step_index: int) -> bool:
        """Whether the step with this 0-based index measures every layer."""
        return self._every > 0 and (step_index == 0 or (step_index + 1) % self._every == 0)

    def step(self, step: Callable[[], Result], *, batch: Any = None, step_index: int | None = None) -> Result:
        """Run one step; returns what it returns.

        Args:
            batch: names the step's tensors and samples, see `explain`.
            step_index: 0-based number of the step; without it steps are counted from 0.

        Raises:
            NonFiniteError: a loss that was differentiated, a gradient, norm, buffer, parameter, state or average is
                not finite, or a gradient scaler collapsed. Its text says whether everything is as before the step, as
                it is but for what no watch can foresee: an optimizer that steps a second time in the callable, or
                writes beside it.
            RuntimeError: inside a step of the same watch.
        """
        index = self._num_steps if step_index is None else step_index
        self._num_steps = index + 1
        if not self._attached:
            return step()
        with _ONE_AT_A_TIME:
            if self._running:
                raise RuntimeError("Watch.step inside a step of the same watch; give each loop a watch of its own")
            self._running = True
            try:
                return self._step(step, batch, index)
            finally:
                self._running = False
                self._seen.before = None

    def note(self, *, loss: float, grad_norm: float) -> None:
        """For a loop that reads its loss and gradient norm before `optimizer.step()` anyway.

        Nothing more is read, but for one flag where the model has buffers.

        Raises:
            _Trip: one of them is not finite; unwinds to `Watch.step`.
            NonFiniteError: likewise, on a watch that is detached.
        """
        self._seen.norm = grad_norm
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        phase, text = "backward" if math.isfinite(loss) else "loss", f"loss {loss:.6g}, gradient norm {grad_norm:.6g}"
        if not self._attached:
            fix = "attach the watch to learn where it was born"
            raise NonFiniteError(Verdict(phase, None, "unknown", witness={"seen": text}, fix=fix))
        raise _StopReplay if self._seen.is_replayed else _Trip(phase, text)

    # During a step

    def _step(self, step: Callable[[], Result], batch: Any, index: int) -> Result:
        due = self.is_due(index)
        if due or self._guarded.is_stale:
            self._guarded.renew()
        # Somebody else wrote to them: a checkpoint was loaded, or this is the first step.
        changed = self._versions is None or self._versions != self._guarded.state_versions()
        self._seen = Observation(Randomness(), checks_states=changed)
        self._seen.on_optimizer = self._adopt if self._adopts else None
        self._guarded.buffers.take()
        if not self._optimizers and self.undo_reason is not None:
            self._seen.before = self._guarded.copy()
        if self._versions is None:  # the first step shows what else the callable writes to
            if self._guarded.beside and self._undo == "auto":
                self._seen.before = self._guarded.copy()
            self._seen.leftover = self._guarded.bad_gradients()
        versions = self._guarded.versions()
        trip: _Trip | None = None
        try:
            with ExitStack() as stack:
                for layers in self._layers:
                    stack.enter_context(layers.recording(enabled=due))
                stack.enter_context(self._seen.observing())
                stack.enter_context(self._before_each_optimizer(self._before_optimizer))
                result = step()
            self._after_step(result, versions)
        except _Trip as caught:
            trip = caught.with_traceback(None)  # its frames hold the step's graph
        if trip is not None:
            error = self._explain(trip, step, batch, index)
            if error is not None:
                raise error
            return self._step(step, batch, index)  # the buffers' infinities are meant
        self._versions = self._guarded.state_versions()
        if due:
            self.layers = {name: parts for layers in self._layers for name, parts in layers.collect().items()}
        return result

    @contextmanager
    def _before_each_optimizer(self, check: Callable[[Any, list[Any]], None]) -> Iterator[None]:
        """Call `check(optimizer, arguments)` before every `step`; it may exchange arguments for others in place.

        An optimizer that has no hooks gets a `step` of its own.
        """

        def hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return _checked_arguments(check, optimizer, args, kwargs)

        def checked(original: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                values = [*args, *kwargs.values()]
                check(getattr(original, "__self__", original), values)
                return original(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))

            return step

        with ExitStack() as stack:
            for optimizer in self._optimizers:
                inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks
                if isinstance(inner, torch.optim.Optimizer):
                    stack.callback(inner.register_step_pre_hook(hook).remove)
                else:
                    stack.enter_context(replaced(inner, "step", checked))
            yield

    def _adopt(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A torch optimizer steps in a loop that gave the watch none: it is watched from here on."""
        own = self._guarded.versions().keys()
        if optimizer in self._optimizers or not own & {id(p) for g in optimizer.param_groups for p in g["params"]}:
            return None
        self._optimizers.append(optimizer)
        self._guarded.renew()
        if not self._seen.stepped:
            self._seen.before = self._guarded.copy()
        return _checked_arguments(self._before_optimizer, optimizer, args, kwargs)

    def _before_optimizer(self, optimizer: Any, arguments: list[Any]) -> None:
        """The boundary check: loss, gradients, norm and buffers are finite, or nothing moves."""
        closures = [i for i, value in enumerate(arguments) if callable(value)]
        if optimizer in self._seen.stepped and self._seen.before is None:
            self._learned = "the optimizer steps several times in the callable"
        if not closures and not self._gradients_are_finite(optimizer):
            self._seen.skipped = True  # the scaler will make the optimizer leave this step out
            return
        self.skips_in_a_row = 0
        reason = self.undo_reason  # now: the loop may have set the rate of this step
        if not self._seen.stepped and self._seen.before is None:
            if reason is not None:
                self._seen.before = self._guarded.copy()
            elif self._seen.checks_states and on_any(not states_are_sound(optimizer)):
                self._seen.before = self._guarded.copy()  # what comes of it is seen after the step
        if not closures:
            self._seen.stepped.append(optimizer)
        for i in closures:  # gradients exist when it returns; a first call of it comes before any change
            arguments[i] = self._checked_closure(arguments[i], optimizer)

    def _checked_closure(self, closure: Callable[[], Any], optimizer: Any) -> Callable[[], Any]:
        def checked() -> Any:
            result = closure()
            self._gradients_are_finite(optimizer)
            self._seen.stepped.append(optimizer)
            self._seen.norm = None  # a next call has other gradients
            return result

        return checked

    def _gradients_are_finite(self, optimizer: Any = None) -> bool:
        """Read the joint norm of all gradients and the losses' flag. False where a gradient scaler found overflow and
        has told a fused optimizer.

        Raises:
            _Trip: something is not finite, here or on another rank.
        """
        if isinstance(self._seen.norm, float):  # `note` has read it
            if self._guarded.buffers.current():
                self._check_buffers(worst((~self._guarded.buffers_are_sound()).double()[None])[0])
            self._copy_if_huge(self._seen.norm)
            return True
        held = self._guarded.gradients(optimizer)
        by_loop = self._seen.covers(held)
        gradients = [] if by_loop else values_of(held)
        norm = values_of([self._seen.norm])[0].double() if by_loop else magnitude(gradients)
        bad_losses = [(~flag).to(norm) for flag in self._seen.losses]
        loss = torch.stack(bad_losses).sum() if bad_losses else torch.zeros_like(norm)
        overflow = getattr(optimizer, "found_inf", None)
        found_inf = overflow.detach().to(norm) if isinstance(overflow, Tensor) else torch.zeros_like(norm)
        flags = [loss, norm, (~self._guarded.buffers_are_sound()).to(norm), found_inf]
        num_bad_losses, norm_value, bad_buffers, skips = worst(torch.stack([flag.reshape(()) for flag in flags]))
        if num_bad_losses:
            raise _Trip("loss", "the loss is not finite")
        if skips:
            return False
        if not math.isfinite(norm_value) and (by_loop or on_any(any_bad(gradients))):
            raise _Trip("backward", f"the gradient norm is {norm_value:g}")
        self._check_buffers(bad_buffers)
        self._copy_if_huge(norm_value)
        return True

    def _check_buffers(self, num_bad: float) -> None:
        if num_bad:
            raise _BufferTrip("forward", "a buffer is not finite")
        self._seen.buffer_versions = self._guarded.buffers.versions()

    def _copy_if_huge(self, norm: float) -> None:
        huge = not math.isfinite(norm) or norm > LARGEST_GRADIENT  # inf: its squares overflow, it does not
        if huge and self._undo == "auto" and self._seen.before is None and not self._seen.stepped:
            self._seen.before = self._guarded.copy()

    def _after_step(self, result: Any, versions: dict[int, int]) -> None:
        scalars = [tensor for tensor in tensors_in(result) if tensor.numel() == 1]
        scaled = self._seen.scaler is not None
        if self._seen.skipped or (self._seen.scaler_stepped and not self._seen.any_stepped):
            self._after_skip(scalars)
        elif scaled and not self._seen.any_stepped:  # gradients accumulate, and may overflow until it calibrates
            self._check_losses(scalars)
        elif not self._seen.stepped:
            self._seen.note_losses(scalars)
            self._gradients_are_finite()
        self._check_writes_beside(versions)
        if self._seen.before is not None:
            kept = self._guarded.everything()
            norm = worst(magnitude(kept)[None])[0]
            if not math.isfinite(norm) and on_any(any_bad(kept)):
                raise _Trip("optimizer", "parameters, optimizer state or averages are not finite after the step")

    def _check_losses(self, scalars: list[Tensor]) -> None:
        if on_any(any_bad(values_of(scalars))):
            raise _Trip("loss", "the loss is not finite")

    def _after_skip(self, scalars: list[Tensor]) -> None:
        """A gradient scaler left the step out. That is how it finds its scale, unless the loss is bad or it goes on."""
        self._check_losses(scalars)
        self.num_skipped += 1
        self.skips_in_a_row += 1
        if self.skips_in_a_row >= self._max_skips:
            raise _Trip("backward", f"the gradient scaler skipped {self.skips_in_a_row} steps in a row")

    def _check_writes_beside(self, versions: dict[int, int]) -> None:
        """What else than the optimizers' own parameters the step changed, an average or a buffer; without a copy.

        Seen once, everything is copied from the next step on.
        """
        written = self._seen.stepped and self._seen.buffer_versions != self._guarded.buffers.versions()
        if written and worst((~self._guarded.buffers_are_sound()).double()[None])[0]:
            self._learned = _BESIDE
            raise _BufferTrip("ema", "a buffer is not finite after the step")
        changed = self._guarded.written(versions, own=not self._seen.stepped)
        if changed and self._optimizers:
            self._learned = _BESIDE
        if changed and self._seen.before is None and on_any(any_bad(values_of(changed))):
            raise _Trip("ema" if self._seen.stepped else "optimizer", _BESIDE)

    # After a trip

    def _explain(self, trip: _Trip, step: Callable[[], Any], batch: Any, index: int) -> NonFiniteError | None:
        """The error to raise; None where the replay shows that a buffer's infinity is meant."""
        if self.on_trip is not None:
            self.on_trip()
        is_restored = self._seen.before is not None or not self._seen.moved(trip.phase)
        bad_buffers = self._guarded.bad_buffers()
        if not is_restored:
            self._seen.before = self._guarded.copy()  # the replay starts from here, and comes back
        self._restore()
        self._guarded.clear_gradients()
        for parameter, gradient in self._seen.leftover:
            parameter.grad = gradient
        explanation = Explanation(self._models, self._optimizers, batch)
        explanation.tolerates_scaler = self.skips_in_a_row < self._max_skips
        verdict, failure = None, ""
        try:
            with self._replaying():
                verdict = explanation.run(step, stop=_StopReplay)
        except Exception as error:  # the finding must not be lost to it
            failure = f"; the replay ended with {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        finally:
            self._restore()
            self._guarded.clear_gradients()
        if isinstance(trip, _BufferTrip) and not on_any(verdict is not None or bool(failure)):
            has_nan = any(bool(torch.isnan(tensor).any()) for tensor in bad_buffers.values())
            if on_any(bool(bad_buffers)) and not on_any(has_nan):
                self._guarded.mean_infinity(set(bad_buffers))
                return None
        found = None if verdict is None else replace(verdict, reproducible=True)
        verdict = agreed(found) or Verdict(
            phase=trip.phase,
            exception=None,
            cause="unknown",
            witness={"seen": trip.text + failure},
            fix="the same step was finite when it was repeated: suspect a race (an asynchronous copy), memory that is "
            "read before it is written, a batch that the step takes from an iterator, gradients that were there before "
            "the step, a nondeterministic kernel, a compiled one (it was repeated eagerly: try without torch.compile), "
            "or the hardware (torchtitan#951)"
            if not failure
            else "let the step be callable twice: it must not consume its batch",
            reproducible=False if not failure else None,
        )
        verdict = replace(verdict, step=index)
        folder, unwritten = None, ""
        if self.incidents is not None and (verdict.rank is None or verdict.rank == rank()):
            try:
                folder = write_incident(
                    self.incidents,
                    verdict,
                    culprit=explanation.culprit,
                    batch=batch,
                    randomness=self._seen.randomness.tensors(),
                )
            except OSError as error:
                unwritten = f"{self.incidents}: no evidence could be written ({error.strerror or error})"
        explanation.forget()
        return NonFiniteError(verdict, folder, is_restored=is_restored, note=unwritten)

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        def stop(optimizer: Any, arguments: list[Any]) -> None:
            if not any(callable(value) for value in arguments):
                raise _StopReplay
            for i, value in enumerate(arguments):
                if callable(value):
                    arguments[i] = stopped(value)

        def stopped(closure: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                closure()
                raise _StopReplay

            return run

        self._seen.is_replayed = True
        try:
            with ExitStack() as stack:
                if self._seen.before is None:  # what the optimizer does could not be undone
                    stack.enter_context(self._before_each_optimizer(stop))
                yield
        finally:
            self._seen.is_replayed = False

    def _restore(self) -> None:
        self._seen.randomness.restore()
        self._guarded.buffers.restore()
        if self._seen.before is not None:
            self._seen.before.restore()
        self._seen.restore_scaler()


def _checked_arguments(
    check: Callable[[Any, list[Any]], None], optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Arguments of an optimizer's step after `check` has seen them; the first is the optimizer."""
    values = [*args[1:], *kwargs.values()]
    check(optimizer, values)
    given = values[: len(args) - 1]
    return (args[0], *given), dict(zip(kwargs, values[len(given) :], strict=True))
