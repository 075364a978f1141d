"""The order of backward, clearing, clipping, scaling and steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.contracts.accumulation import Accumulation
from diagnostics.contracts.calls import Clip
from diagnostics.contracts.clips import Clips
from diagnostics.contracts.cycle import Cycle, Cycles, are_zero, has_gradient, untouched, with_same_bits, written
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scalers import Scalers
from diagnostics.contracts.scene import Scene, Step, bare

_EMPTY_STEPS, _EMPTY_OF_SEVERAL, _EMPTY_FOR_LONG = 2, 4, 20
_WASTED_STEPS, _FIRST_STEPS = 2, 4
_STALE_STEPS = 2
_MANY_DROPPED = 3  # backward passes before one step
_MIXED_STEPS = _VAIN = 2
_MOST_PASSES = 16


@dataclass
class _Pass:
    """A backward that left gradients which no optimizer has stepped on yet."""

    index: int
    """0-based, of the watched step."""
    reached: set[int]
    """Cycles that it reached and that were not cleared since."""


class Order(Family):
    """Follows the gradients of each optimizer of the models from one of its steps to the next."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._cycles = Cycles(scene)
        self._scalers = Scalers(scene, reports, self._cycles)
        self._clips = Clips(scene, reports, self._cycles)
        self._accumulation = Accumulation(scene, reports, self._cycles)
        self._passes: list[_Pass] = []  # that left gradients which nobody has stepped on

    def forget(self) -> None:
        for cycle in self._cycles.all:
            cycle.forget()
        self._scalers.forget()
        self._accumulation.forget()
        self._passes = []

    def begin(self, step: Step) -> None:
        self._scalers.begin(step)
        self._clips.begin(step)
        self._accumulation.begin(step)
        for cycle in self._cycles.all if step.is_due else ():
            cycle.refresh()

    def end(self, step: Step) -> None:
        self._scalers.end(step)
        self._clips.end(step)
        self._accumulation.end(step)

    # Backward and clearing

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        """A gradient that an optimizer has stepped on, and nobody has touched, is about to be added to."""
        self._scalers.before_backward(step, roots)
        for cycle in self._cycles.known():
            cycle.forget_cleared_by_hand()
            if not cycle.after_step or cycle.suspects or cycle.clears_unseen:
                continue
            alive = {id(p) for p in untouched(cycle.after_step)}
            cycle.suspects = [one for one in cycle.after_step if id(one[0]) in alive]
            if cycle.suspects and not cycle.is_suspected:  # asked once, for it reads on the host
                cycle.is_suspected = True
                cycle.clears_unseen = are_zero([p for p, _, _ in cycle.suspects])
                cycle.suspects = [] if cycle.clears_unseen else cycle.suspects

    def after_backward(self, step: Step) -> None:
        reached: list[Cycle] = []
        for cycle in self._cycles.known():
            cycle.num_since_clear += 1
            now = cycle.gradients()
            if not now and not has_gradient(cycle.optimizer()):
                continue
            before = cycle.after_backward or cycle.after_clear or cycle.after_step
            if before and len(untouched(before)) == len(now):
                continue  # another model's backward
            cycle.num_backward += 1
            cycle.is_fresh = cycle.was_reached = True
            self._scalers.note_reached(cycle)
            cycle.after_backward, cycle.step_of_backward = now, step.index
            reached.append(cycle)
        for cycle in reached:
            cycle.reached_with([other.optimizer() for other in reached if other is not cycle])
            cycle.is_summed |= bool(written(cycle.of_last_call))
        if len(reached) and len(self._cycles.known()) > 1:
            self._passes = [*self._passes[-_MOST_PASSES:], _Pass(step.index, {id(cycle) for cycle in reached})]

    def after_clear(self, step: Step, owner: Any) -> None:
        is_optimizer = isinstance(owner, torch.optim.Optimizer)
        cleared = set() if is_optimizer else {id(p) for p in owner.parameters()}
        for cycle in self._cycles.known():
            if cycle.optimizer() is not owner and not (cleared and all(id(p) in cleared for p in cycle.samples)):
                continue
            if cycle.is_fresh and cycle.step_of_backward != step.index:  # an attack drops its own, in one step
                cycle.num_dropped += 1
            self._clips.note_cleared(step, cycle)
            self._check_vain(step, cycle)
            cycle.clear()

    def _check_vain(self, step: Step, cycle: Cycle) -> None:
        """Gradients of a whole backward are gone, of all optimizers that it reached, and none has stepped on them."""
        gone = []
        for one in self._passes:
            one.reached.discard(id(cycle))
            gone += [] if one.reached or one.index == step.index else [one]  # an attack drops its own, in one step
        self._passes = [one for one in self._passes if one.reached]
        if not gone or not cycle.num_steps:
            return
        is_next = cycle.num_steps - cycle.num_steps_of_vain == 1
        cycle.num_vain, cycle.num_steps_of_vain = cycle.num_vain + 1 if is_next else 1, cycle.num_steps
        if cycle.num_vain >= _VAIN:
            evidence = f"a backward left gradients in {self.scene.name_of_optimizer(cycle.optimizer())}, and they were"
            evidence += f" cleared before any optimizer stepped on them, {cycle.num_vain} times"
            where = self.scene.call_of(cycle.optimizer(), "zero_grad")
            self.broken("gradients-cleared-too-early", step, evidence, subject=where)

    # Steps

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        cycle = self._cycles.of(optimizer)
        if cycle is None:
            return
        cycle.num_calls, cycle.of_last_call, cycle.is_summed = 0, [], False
        if has_closure:  # it may compute the gradients, or nothing
            cycle.num_before_closure = step.num_backward
        else:
            self._check(step, cycle, optimizer)

    def before_closure(self, step: Step, optimizer: Any) -> None:
        cycle = self._cycles.of(optimizer)
        if cycle is not None:
            cycle.num_calls += 1
            cycle.of_last_call = cycle.gradients() if cycle.num_calls > 1 else []

    def _check(self, step: Step, cycle: Cycle, optimizer: Any) -> None:
        """What it steps on. A step moves no gradient: it may be asked when it is over."""
        name, call_of = self.scene.name_of_optimizer(optimizer), self.scene.call_of
        may_read = step.is_due or cycle.num_steps < _FIRST_STEPS
        is_empty = not has_gradient(optimizer) or (may_read and self._is_cleared(cycle))
        if is_empty and (cycle.is_fresh or (cycle.was_reached and cycle.num_since_clear == 0)):
            evidence = f"{name} steps without gradient: backward computed it, and it was cleared before the step"
            self.broken("gradients-cleared-too-early", step, evidence, subject=call_of(optimizer, "zero_grad"))
        self._check_empty(step, cycle, name, is_empty=is_empty)
        if not is_empty:
            self._check_sums(step, cycle, name)
            self._check_mixed(step, cycle, name)
            self._check_stale(step, cycle, name)
            self._check_partly_stale(step, cycle, name)
            self._scalers.check(step, cycle, name)
            self._check_wasted(step, cycle, name)
            self._accumulation.check(step, optimizer, name)

    def _check_empty(self, step: Step, cycle: Cycle, name: str, *, is_empty: bool) -> None:
        cycle.num_empty = cycle.num_empty + 1 if is_empty else 0
        is_cleared = cycle.is_fresh or (cycle.was_reached and cycle.num_since_clear == 0)  # another contract
        is_only = len(self._cycles.known()) == 1  # else tasks may take turns
        if cycle.num_empty >= (_EMPTY_STEPS if is_only else _EMPTY_OF_SEVERAL) and not is_cleared:
            what = "what was differentiated does not reach its parameters" if step.num_backward else "no backward ran"
            evidence = f"{name} stepped {cycle.num_empty} times in a row without any gradient: {what}"
            severity = "alarm" if is_only or cycle.num_empty >= _EMPTY_FOR_LONG else "warning"
            self.broken("loss-without-gradient", step, evidence, subject="loss.backward", severity=severity)

    def _is_cleared(self, cycle: Cycle) -> bool:
        """Whether all gradients are as they were when they were cleared, to zeros."""
        if cycle.is_fresh or not cycle.after_clear:
            return False
        same = untouched(cycle.after_clear)
        return len(same) == len(cycle.gradients()) and are_zero(same)

    def _check_sums(self, step: Step, cycle: Cycle, name: str) -> None:
        summed = written(cycle.suspects)
        if not summed:
            return
        evidence = f"{name} steps on a gradient that backward added to that of its last step"
        where = self.scene.name_of(summed[0])
        self.broken("gradients-not-cleared", step, f"{evidence} ({where} and others)", parameter=where)

    def _check_mixed(self, step: Step, cycle: Cycle, name: str) -> None:
        """A GAN's judge that steps on what the maker's loss left in it, too."""
        cycle.num_mixed = cycle.num_mixed + 1 if cycle.has_own_after_foreign else 0
        if cycle.num_mixed >= _MIXED_STEPS:
            evidence = f"{name} steps on the sum of its own loss's gradients and of those that another optimizer has"
            where = self.scene.call_of(cycle.optimizer(), "zero_grad")
            self.broken("gradients-not-cleared", step, f"{evidence} stepped on before", subject=where)

    def _check_partly_stale(self, step: Step, cycle: Cycle, name: str) -> None:
        """Values are compared in the second step: a loop may write gradients where no version shows it."""
        same = [p for p in untouched(cycle.after_step) if p.requires_grad]
        is_partly = bool(same) and len(same) < len(cycle.gradients()) and cycle.num_backward > 0
        cycle.num_partly_stale = cycle.num_partly_stale + 1 if is_partly and not cycle.asks_no_more else 0
        if cycle.num_partly_stale < _STALE_STEPS:
            return
        same = with_same_bits(same, cycle.digests)
        cycle.asks_no_more = True
        if same and not are_zero(same):
            evidence = f"{name} steps on a gradient that it has stepped on, and that no backward has touched since"
            self.broken_in("stale-gradients", step, same, evidence)

    def _check_stale(self, step: Step, cycle: Cycle, name: str) -> None:
        same = untouched(cycle.after_step)
        is_stale = cycle.num_backward == 0 and bool(same) and len(same) == len(cycle.gradients())
        cycle.num_stale = cycle.num_stale + 2 if is_stale else max(0, cycle.num_stale - 1)
        if not is_stale or cycle.num_stale <= _STALE_STEPS or are_zero(same):
            return
        evidence = f"{name} steps on a gradient that it had stepped on"
        where = self.scene.call_of(cycle.optimizer(), "step")
        if cycle.was_by_scaler and not self._scalers.is_inside:
            self.broken("scaler-bypassed", step, f"{evidence} in scaler.step, each time", subject=where)
        else:
            self.broken("stale-gradients", step, f"{evidence}, more than once", subject=where)

    def _check_wasted(self, step: Step, cycle: Cycle, name: str) -> None:
        is_wasted = cycle.num_dropped > 0 and len(self._cycles.known()) == 1
        cycle.num_wasted = cycle.num_wasted + 1 if is_wasted else 0
        if cycle.num_wasted >= _WASTED_STEPS or (is_wasted and cycle.num_dropped >= _MANY_DROPPED):
            num = cycle.num_dropped
            evidence = f"{name} steps on the last of {num + 1} backward passes; the gradients of {num} were dropped"
            where = self.scene.call_of(cycle.optimizer(), "zero_grad")
            severity = "alarm" if cycle.num_wasted >= _WASTED_STEPS else "warning"  # a loop may leave bad ones out
            self.broken("accumulation-count", step, evidence, subject=where, severity=severity)

    def _check_closure(self, step: Step, cycle: Cycle, name: str) -> None:
        if cycle.is_summed:
            evidence = f"{name} calls its closure {cycle.num_calls} times a step, and each call adds to the gradient of"
            evidence += " the call before"
            advice = "call zero_grad() at the beginning of the closure"
            where = self.scene.call_of(cycle.optimizer(), "zero_grad")
            self.broken("gradients-not-cleared", step, evidence, subject=where, advice=advice)

    def _check_windows(self, step: Step, cycle: Cycle, name: str) -> None:
        """How many backward passes the only optimizer's steps come after: the first of one, a later one of more."""
        num, window = cycle.num_backward, cycle.window
        cycle.window, was_even = max(window, num), cycle.is_even
        cycle.is_even = was_even and window in (0, num)
        is_first = cycle.num_steps == 0
        cycle.began_with_one |= is_first and (step.index, num) == (0, 1)
        if is_first or num <= window or not was_even or len(self._cycles.known()) > 1:
            return
        where = self.scene.call_of(cycle.optimizer(), "step")
        if window > 1:
            evidence = f"{name} steps after {num} backward passes, and its steps before came after {window}"
            advice = "step, or clear, at the end of an epoch, too: what is left over goes into the next step"
            self.broken("accumulation-count", step, evidence, subject=where, advice=advice, severity="warning")
        elif cycle.began_with_one and cycle.num_steps == 1:
            evidence = f"the first step of {name} came after 1 backward pass, and its second after {num}"
            advice = "step where (index + 1) % n == 0: index % n == 0 holds for the first micro-batch"
            self.broken("accumulation-count", step, evidence, subject=where, advice=advice, severity="warning")

    def after_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        cycle = self._cycles.of(optimizer)
        if cycle is None:
            return
        name = self.scene.name_of_optimizer(optimizer)
        if has_closure and step.num_backward == cycle.num_before_closure:  # Lightning's, in manual optimization
            has_closure = False
            self._check(step, cycle, optimizer)
        elif has_closure:
            self._check_empty(step, cycle, name, is_empty=not has_gradient(optimizer))
            self._check_closure(step, cycle, name)
        self._check_windows(step, cycle, name)
        for other in self._cycles.all:
            if other is not cycle and any(optimizer is one for one in other.shared_with):
                other.is_foreign = True
        cycle.num_steps += 1
        cycle.suspects, cycle.of_last_call = [], []
        cycle.was_by_scaler = self._scalers.is_inside
        self._passes = [one for one in self._passes if id(cycle) not in one.reached]
        cycle.renew()
        cycle.stepped_on = cycle.gradients()
        cycle.after_step = [] if has_closure else cycle.stepped_on
        if cycle.num_partly_stale:
            pairs = ((p, digest(p.grad)) for p, _, _ in cycle.after_step)
            cycle.digests = {id(p): one for p, one in pairs if one is not None}

    # Gradient scalers and clipping

    def after_scale(self, step: Step, scaled: list[Tensor]) -> None:
        self._scalers.after_scale(step, scaled)

    def on_scaler(self, step: Step, scaler: Any, call: str, optimizer: Any) -> None:
        self._scalers.on_scaler(step, scaler, call, optimizer)
        cycle = None if optimizer is None or call != "stepped" else self._cycles.of(bare(optimizer))
        if cycle is not None:  # or left out
            self._passes = [one for one in self._passes if id(cycle) not in one.reached]

    def on_clip(self, step: Step, clip: Clip) -> None:
        self._clips.on_clip(step, clip)
