"""Full-speed training steps that stop before a non-finite value is kept, and then say where it was born.

A healthy step costs one joint norm of the gradients (none where the loop clips: its norm is used) and one read of a
device flag, made before the optimizer step. On a trip the same step runs again, from the same parameters, buffers
and randomness, under `explain`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from diagnostics.explain import Explanation, listed
from diagnostics.incident import write_incident
from diagnostics.layers import LayerStatistics, tensors_in, walk
from diagnostics.nonfinite import NonFiniteError, any_bad, magnitude, values_of
from diagnostics.observation import Observation
from diagnostics.patching import replaced
from diagnostics.ranks import agreed, on_any, rank, worst
from diagnostics.safety import LARGEST_GRADIENT, why_unsafe
from diagnostics.snapshot import OptimizerState, Randomness, Tensors
from diagnostics.statistics import TensorStatistics
from diagnostics.verdict import Verdict

Result = TypeVar("Result")
_SMALL_BUFFER = 2**22  # elements; larger buffers are tables that no step changes


class _Trip(BaseException):
    """Unwinds the caller's step. Not an Exception: a loop's own `except Exception` must not swallow it."""

    def __init__(self, phase: str, text: str) -> None:
        super().__init__(text)
        self.phase, self.text = phase, text


class _StopReplay(BaseException):
    """Ends a replay before an optimizer step that could not be undone."""


class Watch:
    """Watches every training step of a loop (contract C6).

        watch = Watch(model, optimizer, incidents="incidents")
        for batch in loader:
            loss = watch.step(lambda: train_one(batch), batch=batch)

    The callable does one whole optimizer step: forward, backward, clipping, `optimizer.step()`. It is called again
    on a trip, so it must not consume its batch. Parameters that come or go between steps are noticed at the next full
    statistics or `attach`.

    Args:
        model: a module or several. optimizer: what steps inside the callable, one or several of any class with a
            `step` method; None for a loop that updates by hand.
        statistics_every: steps between full statistics of every layer (`layers` after such a step); 0 for never.
        incidents: folder for `step-XXXXXXXX` folders; None writes none.
        averages: tensors of weight averages that the step updates; they are checked and undone, too.
        undo: `auto` copies parameters and optimizer state before a step only where the optimizer could make
            non-finite values of finite gradients (`undo_reason` says why: half parameters, an unknown optimizer, an
            odd eps, several optimizers): one copy in time and memory. `always` and `never` do as they say.
        max_consecutive_skips: a gradient scaler that skips this many steps in a row is a finding.

    Attributes:
        layers: statistics of the last step that measured them, as `LayerStatistics.collect` gives them.
        num_skipped, skips_in_a_row: steps that a gradient scaler left out, in all and just now; set them on resume.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Any = None,
        *,
        statistics_every: int = 50,
        incidents: Path | str | None = "incidents",
        averages: Iterable[Tensor] = (),
        undo: Literal["auto", "always", "never"] = "auto",
        max_consecutive_skips: int = 20,
    ) -> None:
        self._models = listed(model)
        self._optimizers: list[Any] = listed(optimizer)
        self._every = statistics_every
        self.incidents = None if incidents is None else Path(incidents)
        self._averages = list(averages)
        self._undo = undo
        self._max_skips = max_consecutive_skips
        self._layers = [LayerStatistics(one) for one in self._models]
        self._list()
        self._buffers = Tensors()
        self._attached = True
        self._versions: list[tuple[int, int]] | None = None
        self._num_steps = 0
        self.skips_in_a_row = 0
        self.layers: dict[str, dict[str, TensorStatistics]] = {}
        self.num_skipped = 0
        self._seen = Observation(Randomness())
        self._bad_buffers = {id(b) for b in self._buffers_watched if any_bad([b])}  # masks, running extremes

    @property
    def undo_reason(self) -> str | None:
        """Why parameters and state are copied before each step; None where they are not."""
        if self._undo != "auto":
            return "asked for" if self._undo == "always" else None
        if not self._optimizers:
            return "the update is not an optimizer's"
        if len(self._optimizers) > 1:
            return "a second optimizer steps after the first has changed its parameters"
        reason = why_unsafe(self._optimizers[0])
        if reason is None and any(average.dtype is torch.float16 for average in self._averages):
            return "averages are float16"
        return reason

    def attach(self) -> None:
        """Watch again (the state after construction)."""
        self._attached = True
        self._versions = None
        self._list()
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
            NonFiniteError: a loss, gradient, norm, buffer, parameter, state or average is not finite, or a gradient
                scaler collapsed. Everything is as before the step.
        """
        index = self._num_steps if step_index is None else step_index
        self._num_steps = index + 1
        if not self._attached:
            return step()
        due = self.is_due(index)
        if due:
            self._list()
        # Somebody else wrote to them: a checkpoint was loaded, or this is the first step.
        changed = self._versions is None or self._versions != self._state_versions()
        self._seen = Observation(Randomness(), checks_states=changed)
        self._buffers.take(self._buffers_kept)
        if not self._optimizers and self.undo_reason is not None:
            self._seen.before = self._copy_state()
        try:
            with ExitStack() as stack:
                for layers in self._layers:
                    stack.enter_context(layers.recording(enabled=due))
                stack.enter_context(self._seen.observing())
                stack.enter_context(self._before_each_optimizer(self._before_optimizer))
                result = step()
            self._after_step(result)
        except _Trip as trip:
            raise self._explain(trip, step, batch, index) from None
        self._versions = self._state_versions()
        if due:
            self.layers = {name: parts for layers in self._layers for name, parts in layers.collect().items()}
        return result

    def note(self, *, loss: float, grad_norm: float) -> None:
        """For a loop that reads its loss and gradient norm before `optimizer.step()` anyway: nothing more is read.

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

    @contextmanager
    def _before_each_optimizer(self, check: Callable[..., None]) -> Iterator[None]:
        """Call `check` before every `step` of every optimizer; one that has no hooks gets a `step` of its own."""

        def checked(original: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                check()
                return original(*args, **kwargs)

            return step

        with ExitStack() as stack:
            for optimizer in self._optimizers:
                inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks
                if isinstance(inner, torch.optim.Optimizer):
                    stack.callback(inner.register_step_pre_hook(check).remove)
                else:
                    stack.enter_context(replaced(inner, "step", checked))
            yield

    def _before_optimizer(self, *_: Any) -> None:
        """The boundary check: loss, gradients, norm and buffers are finite, or nothing moves."""
        norm = self._check_gradients()
        self.skips_in_a_row = 0
        if self._seen.stepped:
            return  # another optimizer of this step: its copy is made
        self._seen.stepped = True
        reason = self.undo_reason  # now: the loop may have set the rate of this step
        if reason is None and self._seen.checks_states and on_any(any_bad(values_of(self._states()))):
            raise _Trip("state", "an optimizer state is not finite")
        if reason is None and self._undo == "auto" and norm > LARGEST_GRADIENT:
            reason = "gradients are huge"
        if reason is not None:
            self._seen.before = self._copy_state()

    def _check_gradients(self) -> float:
        """The joint norm of all gradients, after one read of it and of the losses' flag.

        Raises:
            _Trip: something is not finite, here or on another rank.
        """
        if isinstance(self._seen.norm, float):
            return self._seen.norm  # `note` has read it
        by_loop = isinstance(self._seen.norm, Tensor) and self._seen.norm_covers >= {
            id(p.grad) for p in self._parameters if p.grad is not None
        }
        gradients = [] if by_loop else values_of(parameter.grad for parameter in self._parameters)
        norm = values_of([self._seen.norm])[0].double() if by_loop else magnitude(gradients)
        buffers = magnitude(values_of(b for b in self._buffers_watched if id(b) not in self._bad_buffers))
        bad_losses = [(~flag).to(norm) for flag in self._seen.losses]
        loss = torch.stack(bad_losses).sum() if bad_losses else torch.zeros_like(norm)
        num_bad_losses, norm_value, buffer_value = worst(torch.stack([loss, norm, buffers.to(norm)]))
        if num_bad_losses:
            raise _Trip("loss", "the loss is not finite")
        if not math.isfinite(norm_value) and (by_loop or on_any(any_bad(gradients))):
            raise _Trip("backward", f"the gradient norm is {norm_value:g}")
        if not math.isfinite(buffer_value) and on_any(any_bad(values_of(self._buffers_watched))):
            raise _Trip("forward", "a buffer is not finite")
        return norm_value if math.isfinite(norm_value) else LARGEST_GRADIENT * 2

    def _after_step(self, result: Any) -> None:
        if not self._seen.stepped:
            self._seen.note_losses(t for t in tensors_in(result) if t.numel() == 1)
            if self._seen.scaler is not None:
                self._after_skip(result)
            else:
                self._check_gradients()
        if self._seen.before is not None:
            kept = values_of([*self._parameters, *self._states(), *self._averages])
            norm = worst(magnitude(kept)[None])[0]
            if not math.isfinite(norm) and on_any(any_bad(kept)):
                raise _Trip("optimizer", "parameters, optimizer state or averages are not finite after the step")

    def _after_skip(self, result: Any) -> None:
        """A gradient scaler left the step out. That is how it finds its scale, unless the loss is bad or it goes on."""
        scalars = [t.detach() for t in tensors_in(result) if t.numel() == 1]
        if on_any(any_bad(values_of(scalars))):
            raise _Trip("loss", "the loss is not finite")
        self.num_skipped += 1
        self.skips_in_a_row += 1
        if self.skips_in_a_row >= self._max_skips:
            raise _Trip("backward", f"the gradient scaler skipped {self.skips_in_a_row} steps in a row")

    # After a trip

    def _explain(self, trip: _Trip, step: Callable[[], Any], batch: Any, index: int) -> NonFiniteError:
        self._restore()
        self._clear_gradients()
        explanation = Explanation(self._models, self._optimizers, batch)
        explanation.tolerates_scaler = self.skips_in_a_row < self._max_skips
        try:
            with self._replaying():
                verdict = explanation.run(step, stop=_StopReplay)
        finally:
            self._restore()
            self._clear_gradients()
        found = None if verdict is None else replace(verdict, reproducible=True)
        verdict = agreed(found) or Verdict(
            phase=trip.phase,
            exception=None,
            cause="unknown",
            witness={"seen": trip.text},
            fix="the same step was finite when it was repeated: suspect a race (an asynchronous copy), memory that is "
            "read before it is written, a nondeterministic kernel, or the hardware (torchtitan#951)",
            reproducible=False,
        )
        verdict = replace(verdict, step=index)
        folder = None
        if self.incidents is not None and (verdict.rank is None or verdict.rank == rank()):
            folder = write_incident(
                self.incidents,
                verdict,
                culprit=explanation.culprit,
                batch=batch,
                randomness=self._seen.randomness.tensors(),
            )
        return NonFiniteError(verdict, folder)

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        def stop(*_: Any) -> None:
            raise _StopReplay

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
        self._buffers.restore()
        if self._seen.before is not None:
            self._seen.before.restore()
        self._seen.restore_scaler()

    # What is watched

    def _list(self) -> None:
        """What the models and the optimizer hold. Walking them costs a hundredth of a step, so it is done seldom."""
        modules = [module for model in self._models for _, module in walk(model)]
        found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
        for optimizer in self._optimizers:
            for group in getattr(optimizer, "param_groups", []):
                found |= {id(p): p for p in group["params"]}
        buffers = list({id(b): b for module in modules for b in module._buffers.values() if b is not None}.values())
        self._parameters = list(found.values())
        self._buffers_kept = [b for b in buffers if b.numel() <= _SMALL_BUFFER]  # counters, too
        self._buffers_watched = [b for b in self._buffers_kept if b.is_floating_point()]

    def _state_dicts(self) -> Iterator[Mapping[str, Any]]:
        for optimizer in self._optimizers:
            states = getattr(optimizer, "state", None)
            if isinstance(states, Mapping):
                yield from (state for state in states.values() if isinstance(state, Mapping))

    def _states(self) -> Iterator[Tensor]:
        for state in self._state_dicts():
            yield from tensors_in(state)

    def _state_versions(self) -> list[tuple[int, int]]:
        # Thousands of tensors, twice a step.
        return [(id(v), v._version) for state in self._state_dicts() for v in state.values() if isinstance(v, Tensor)]

    def _copy_state(self) -> OptimizerState:
        return OptimizerState(self._optimizers, self._parameters, self._averages)

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
