"""Full-speed training steps that stop before a non-finite value is kept, and then say where it was born.

A healthy step costs one joint norm of the gradients (none where the loop clips: its norm is used) and one read of a
device flag, made before the optimizer step. On a trip the same step runs again, from the same parameters, buffers
and randomness, under `explain`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.utils.clip_grad
from torch import Tensor, nn

from diagnostics.explain import Explanation, listed
from diagnostics.incident import write_incident
from diagnostics.layers import LayerStatistics, tensors_in
from diagnostics.nonfinite import NonFiniteError, any_bad, magnitude, values_of
from diagnostics.ranks import num_ranks, rank
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


@dataclass
class _Seen:
    """What was noticed of the step that is running. norm: a tensor until it is read.

    before: copy of what the optimizer will change, where it is kept; why: the reason for keeping it.
    """

    randomness: Randomness
    losses: list[Tensor] = field(default_factory=list)
    norm: float | Tensor | None = None
    norm_covers: set[int] = field(default_factory=set)
    scaler: torch.amp.GradScaler | None = None
    scaler_before: list[Tensor | None] = field(default_factory=lambda: [None, None])
    stepped: bool = False
    is_replayed: bool = False
    before: OptimizerState | None = None
    why: str | None = None
    checks_states: bool = False


class Watch:
    """Watches every training step of a loop (contract C6).

        watch = Watch(model, optimizer, incidents="incidents")
        for batch in loader:
            loss = watch.step(lambda: train_one(batch), batch=batch)

    The callable does one whole optimizer step: forward, backward, clipping, `optimizer.step()`. It is called again
    on a trip, so it must not consume its batch. Parameters that come or go between steps are noticed at the next full
    statistics or `attach`.

    Args:
        model: a module or several. optimizer: the one that steps inside the callable; None for a loop that updates
            by hand.
        statistics_every: steps between full statistics of every layer (`layers` after such a step); 0 for never.
        incidents: folder for `step-XXXXXXXX` folders; None writes none.
        averages: tensors of weight averages that the step updates; they are checked and undone, too.
        undo: `auto` copies parameters and optimizer state before a step only where the optimizer could make
            non-finite values of finite gradients (`undo_reason` says why: half parameters, an unknown optimizer, an
            odd eps): one copy in time and memory. `always` and `never` do as they say.
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
        self._optimizer = optimizer
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
        self._seen = _Seen(Randomness())
        self._bad_buffers = {id(b) for b in self._buffers_watched if any_bad([b])}  # masks, running extremes

    @property
    def undo_reason(self) -> str | None:
        """Why parameters and state are copied before each step; None where they are not."""
        if self._undo != "auto":
            return "asked for" if self._undo == "always" else None
        if self._optimizer is None:
            return "the update is not an optimizer's"
        reason = why_unsafe(self._optimizer)
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
        self._seen = _Seen(Randomness(), why=self.undo_reason, checks_states=changed)
        self._buffers.take(self._buffers_kept)
        if self._seen.why is not None and self._optimizer is None:
            self._seen.before = self._copy_state()
        try:
            with ExitStack() as stack:
                for layers in self._layers:
                    stack.enter_context(layers.recording(enabled=due))
                stack.enter_context(self._observing())
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
        if _is_finite(loss) and _is_finite(grad_norm):
            return
        phase, text = "backward" if _is_finite(loss) else "loss", f"loss {loss:.6g}, gradient norm {grad_norm:.6g}"
        if not self._attached:
            fix = "attach the watch to learn where it was born"
            raise NonFiniteError(Verdict(phase, None, "unknown", witness={"seen": text}, fix=fix))
        raise _StopReplay if self._seen.is_replayed else _Trip(phase, text)

    # During a step

    @contextmanager
    def _observing(self) -> Iterator[None]:
        """See the roots of backward, the norm of clipping and the gradient scaler, without reading any of them."""
        autograd, clip, scaler = torch.autograd, torch.nn.utils.clip_grad, torch.amp.GradScaler
        backward, total_norm, scale = autograd.backward, clip._get_total_norm, scaler.scale

        def watched_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen.losses += [torch.isfinite(t.detach()).all() for t in tensors_in(tensors)]
            return backward(tensors, *args, **kwargs)

        def watched_norm(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            self._seen.norm = total_norm(listed, *args, **kwargs)
            self._seen.norm_covers = {id(tensor) for tensor in listed}
            return self._seen.norm

        def watched_scale(instance: torch.amp.GradScaler, outputs: Any) -> Any:
            if self._seen.scaler is None and instance.is_enabled():
                self._seen.scaler = instance
                held = (instance._scale, instance._growth_tracker)
                self._seen.scaler_before = [None if t is None else t.clone() for t in held]
            return scale(instance, outputs)

        hooks = []
        if isinstance(self._optimizer, torch.optim.Optimizer):
            hooks.append(self._optimizer.register_step_pre_hook(self._before_optimizer))
        watched: list[tuple[Any, str, Any]] = [
            (autograd, "backward", watched_backward),
            (clip, "_get_total_norm", watched_norm),
            (scaler, "scale", watched_scale),
        ]
        for owner, name, function in watched:
            setattr(owner, name, function)
        try:
            yield
        finally:
            for (owner, name, _), function in zip(watched, (backward, total_norm, scale), strict=True):
                setattr(owner, name, function)
            for hook in hooks:
                hook.remove()

    def _before_optimizer(self, *_: Any) -> None:
        """The boundary check: loss, gradients, norm and buffers are finite, or nothing moves."""
        norm = self._check_gradients()
        self._seen.stepped = True
        self.skips_in_a_row = 0
        reason = self._seen.why or self.undo_reason  # again: the loop may have set the rate of this step
        if reason is None and self._seen.checks_states:
            states = [v for state in getattr(self._optimizer, "state", {}).values() for v in tensors_in(state)]
            if self._any(any_bad(values_of(states))):
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
        losses = torch.stack([flag.to(norm.device) for flag in self._seen.losses]).all() if self._seen.losses else None
        buffers = magnitude(values_of(b for b in self._buffers_watched if id(b) not in self._bad_buffers))
        numbers = [norm, torch.ones_like(norm) if losses is None else losses.to(norm), buffers.to(norm)]
        norm_value, is_loss_finite, buffer_value = self._read(torch.stack(numbers))
        if not is_loss_finite:
            raise _Trip("loss", "the loss is not finite")
        if not _is_finite(norm_value) and (by_loop or self._any(any_bad(gradients))):
            raise _Trip("backward", f"the gradient norm is {norm_value:g}")
        if not _is_finite(buffer_value) and self._any(any_bad(values_of(self._buffers_watched))):
            raise _Trip("forward", "a buffer is not finite")
        return norm_value if _is_finite(norm_value) else LARGEST_GRADIENT * 2

    def _after_step(self, result: Any) -> None:
        if not self._seen.stepped:
            self._seen.losses += [torch.isfinite(t.detach()).all() for t in tensors_in(result) if t.numel() == 1]
            if self._seen.scaler is not None:
                self._after_skip(result)
            else:
                self._check_gradients()
        if self._seen.before is not None:
            states = [v for state in getattr(self._optimizer, "state", {}).values() for v in tensors_in(state)]
            kept = values_of([*self._parameters, *states, *self._averages])
            norm = self._read(magnitude(kept)[None])[0]
            if not _is_finite(norm) and self._any(any_bad(kept)):
                raise _Trip("optimizer", "parameters, optimizer state or averages are not finite after the step")

    def _after_skip(self, result: Any) -> None:
        """A gradient scaler left the step out. That is how it finds its scale, unless the loss is bad or it goes on."""
        scalars = [t.detach() for t in tensors_in(result) if t.numel() == 1]
        if self._any(any_bad(values_of(scalars))):
            raise _Trip("loss", "the loss is not finite")
        self.num_skipped += 1
        self.skips_in_a_row += 1
        if self.skips_in_a_row >= self._max_skips:
            raise _Trip("backward", f"the gradient scaler skipped {self.skips_in_a_row} steps in a row")

    def _read(self, numbers: Tensor) -> list[float]:
        """The one read of a step: the worst of all ranks."""
        if num_ranks() > 1:
            bad = torch.where(torch.isfinite(numbers), numbers, torch.inf)
            signed = torch.cat([bad, -numbers.nan_to_num(0.0)])  # one reduction for largest and smallest
            torch.distributed.all_reduce(signed, op=torch.distributed.ReduceOp.MAX)
            largest, smallest = signed[: len(numbers)].tolist(), (-signed[len(numbers) :]).tolist()
            return [a if i != 1 else b for i, (a, b) in enumerate(zip(largest, smallest, strict=True))]
        return numbers.tolist()

    def _any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        if num_ranks() == 1:
            return flag
        flags: list[Any] = [None] * num_ranks()
        torch.distributed.all_gather_object(flags, flag)
        return any(flags)

    # After a trip

    def _explain(self, trip: _Trip, step: Callable[[], Any], batch: Any, index: int) -> NonFiniteError:
        self._restore()
        self._clear_gradients()
        explanation = Explanation(self._models, self._optimizer, batch)
        explanation.tolerates_scaler = self.skips_in_a_row < self._max_skips
        try:
            with self._replaying():
                verdict = explanation.run(step, stop=_StopReplay)
        finally:
            self._restore()
            self._clear_gradients()
        found = None if verdict is None else replace(verdict, reproducible=True)
        verdict = self._agree(found) or Verdict(
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
        hook = None
        self._seen.is_replayed = True
        if self._seen.before is None and isinstance(self._optimizer, torch.optim.Optimizer):

            def stop(*_: Any) -> None:
                raise _StopReplay

            hook = self._optimizer.register_step_pre_hook(stop)
        try:
            yield
        finally:
            self._seen.is_replayed = False
            if hook is not None:
                hook.remove()

    def _restore(self) -> None:
        self._seen.randomness.restore()
        self._buffers.restore()
        if self._seen.before is not None:
            self._seen.before.restore()
        if self._seen.scaler is not None:
            copies = [None if t is None else t.clone() for t in self._seen.scaler_before]
            self._seen.scaler._scale, self._seen.scaler._growth_tracker = copies
            self._seen.scaler._per_optimizer_states.clear()

    def _agree(self, verdict: Verdict | None) -> Verdict | None:
        """One verdict for all ranks: that of the first rank where a value was born rather than received."""
        if num_ranks() == 1:
            return verdict
        found: list[Any] = [None] * num_ranks()
        mine = None if verdict is None else replace(verdict, rank=rank()).to_json()
        torch.distributed.all_gather_object(found, mine)
        verdicts = [Verdict.from_json(one) for one in found if one is not None]
        first = min(verdicts, key=lambda v: (v.phase == "reduce", v.rank), default=None)
        if first is not None and first.cause == "other_rank" and len(verdicts) == num_ranks() and "inf" in first.value:
            fix = "the sum over ranks overflows: divide before reducing, or reduce in a wider dtype"
            return replace(first, exception="overflow", cause="overflow", fix=fix)  # nobody sent a bad value
        return first

    # What is watched

    def _list(self) -> None:
        """What the models and the optimizer hold. Walking them costs a hundredth of a step, so it is done seldom."""
        found = {id(p): p for model in self._models for p in model.parameters()}
        for group in getattr(self._optimizer, "param_groups", []):
            found |= {id(p): p for p in group["params"]}
        buffers = [buffer for model in self._models for buffer in model.buffers()]
        self._parameters = list(found.values())
        self._buffers_kept = [b for b in buffers if b.numel() <= _SMALL_BUFFER]  # counters, too
        self._buffers_watched = [b for b in self._buffers_kept if b.is_floating_point()]

    def _state_versions(self) -> list[tuple[int, int]]:
        states = getattr(self._optimizer, "state", {}).values()
        return [(id(v), v._version) for state in states for v in state.values() if isinstance(v, Tensor)]

    def _copy_state(self) -> OptimizerState:
        return OptimizerState(self._optimizer, self._parameters, self._averages)

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _is_finite(number: float) -> bool:
    return number == number and number not in (float("inf"), float("-inf"))
