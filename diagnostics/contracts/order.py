"""The order of backward, clearing, clipping, scaling and steps."""

import math
import sys
from typing import Any

import torch
from torch import Tensor

from diagnostics.contracts.calls import Clip
from diagnostics.contracts.cycle import Cycle, are_zero, has_gradient, untouched, with_same_bits, written
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scaled import Scaled
from diagnostics.contracts.scene import Scene, Step, bare, held_by

_EMPTY_STEPS = 2
_WASTED_STEPS = 2
_STALE_STEPS = 2
_MANY_DROPPED = 3  # backward passes before one step
_MIXED_STEPS = _EARLY_STEPS = _STEPS_WITHOUT_UPDATE = _BARE_STEPS = _EMPTY_CLIPS = 2


class Order(Family):
    """Follows the gradients of each optimizer of the models from one of its steps to the next."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._cycles: list[Cycle] = []
        self._scaled = Scaled()
        self._is_scaled = False  # what the running backward differentiates
        self._num_empty_clips = 0  # in a row
        self._in_scaler_step = False
        self._has_update = False  # a scaler was asked for more than a factor
        self._num_early = 0  # steps in a row before an accumulation's end
        self._first_sync: bool | None = None
        self._sync_moves = False  # accelerate's state is of this loop, not left by another one in this process
        self._stepped_by_scaler: dict[int, set[int]] = {}  # scaler -> optimizers since its last update

    # Which cycle

    def _cycle(self, optimizer: Any) -> Cycle | None:
        """Of an optimizer that concerns the models."""
        for cycle in self._cycles:
            if cycle.optimizer() is optimizer:
                return cycle
        if not self.scene.concerns(optimizer):
            return None
        cycle = Cycle(optimizer)
        self._cycles = [c for c in self._cycles if c.optimizer() is not None] + [cycle]
        return cycle

    def _known(self) -> list[Cycle]:
        """Of all optimizers that are watched."""
        found = (self._cycle(optimizer) for optimizer in self.scene.bare_optimizers())
        return [cycle for cycle in found if cycle is not None]

    def forget(self) -> None:
        for cycle in self._cycles:
            cycle.forget()
        self._scaled.clear()
        self._in_scaler_step = False
        self._stepped_by_scaler.clear()

    def begin(self, step: Step) -> None:
        self._in_scaler_step = False
        self._sync_moves |= step.is_accelerated
        self._sync_now()
        for cycle in self._cycles if step.is_due else ():
            cycle.refresh()

    def end(self, step: Step) -> None:
        self._scaled.clear()

    # Backward and clearing

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        """A gradient that an optimizer has stepped on, and nobody has touched, is about to be added to."""
        self._is_scaled = self._scaled.are_in(roots)
        for cycle in self._known():
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
        for cycle in self._known():
            cycle.num_since_clear += 1
            now = cycle.gradients()
            if not now and not has_gradient(cycle.optimizer()):
                continue
            before = cycle.after_backward or cycle.after_clear or cycle.after_step
            if before and len(untouched(before)) == len(now):
                continue  # another model's backward
            cycle.num_backward += 1
            cycle.is_fresh = cycle.was_reached = True
            cycle.is_scaled, cycle.is_unscaled = self._is_scaled, False
            cycle.has_bare |= not self._is_scaled
            cycle.after_backward, cycle.step_of_backward = now, step.index
            reached.append(cycle)
        for cycle in reached:
            cycle.reached_with([other.optimizer() for other in reached if other is not cycle])

    def after_clear(self, step: Step, owner: Any) -> None:
        is_optimizer = isinstance(owner, torch.optim.Optimizer)
        cleared = set() if is_optimizer else {id(p) for p in owner.parameters()}
        for cycle in self._known():
            if cycle.optimizer() is not owner and not (cleared and all(id(p) in cleared for p in cycle.samples)):
                continue
            if cycle.is_fresh and cycle.step_of_backward != step.index:  # an attack drops its own, in one step
                cycle.num_dropped += 1
            cycle.clear()

    # Steps

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        cycle = self._cycle(optimizer)
        if cycle is None:
            return
        if has_closure:  # it may compute the gradients, or nothing
            cycle.num_before_closure = step.num_backward
        else:
            self._check(step, cycle, optimizer)

    def _check(self, step: Step, cycle: Cycle, optimizer: Any) -> None:
        """What it steps on. A step moves no gradient: it may be asked when it is over."""
        name, call_of = self.scene.name_of_optimizer(optimizer), self.scene.call_of
        is_empty = not has_gradient(optimizer) or self._is_cleared(cycle)
        if is_empty and (cycle.is_fresh or (cycle.was_reached and cycle.num_since_clear == 0)):
            evidence = f"{name} steps without gradient: backward computed it, and it was cleared before the step"
            self.broken("gradients-cleared-too-early", step, evidence, subject=call_of(optimizer, "zero_grad"))
        self._check_empty(step, cycle, name, is_empty=is_empty)
        if not is_empty:
            self._check_sums(step, cycle, name)
            self._check_mixed(step, cycle, name)
            self._check_stale(step, cycle, name)
            self._check_partly_stale(step, cycle, name)
            self._check_scaling(step, cycle, name)
            self._check_wasted(step, cycle, name)
            self._check_sync(step, optimizer, name)

    def _check_empty(self, step: Step, cycle: Cycle, name: str, *, is_empty: bool) -> None:
        cycle.num_empty = cycle.num_empty + 1 if is_empty else 0
        is_cleared = cycle.is_fresh or (cycle.was_reached and cycle.num_since_clear == 0)  # another contract
        if cycle.num_empty >= _EMPTY_STEPS and not is_cleared:
            what = "what was differentiated does not reach its parameters" if step.num_backward else "no backward ran"
            evidence = f"{name} stepped {cycle.num_empty} times in a row without any gradient: {what}"
            self.broken("loss-without-gradient", step, evidence, subject="loss.backward")

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
        cycle.num_mixed = cycle.num_mixed + 1 if cycle.has_own and cycle.is_foreign else 0
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
        cycle.num_stale = cycle.num_stale + 1 if is_stale else 0
        if cycle.num_stale >= _STALE_STEPS and not are_zero(same):
            evidence = f"{name} has stepped {cycle.num_stale} times in a row on a gradient that it had stepped on"
            self.broken("stale-gradients", step, evidence, subject=self.scene.call_of(cycle.optimizer(), "step"))

    def _check_scaling(self, step: Step, cycle: Cycle, name: str) -> None:
        is_scaled = cycle.is_scaled and not cycle.is_unscaled and not self._in_scaler_step
        if is_scaled and self._is_as_computed(cycle):
            evidence = f"the loss was scaled, and {name} steps on gradients that still have the factor"
            self.broken("scaler-bypassed", step, evidence, subject="scaler.step")
            return
        cycle.num_without_update = cycle.num_without_update + 1 if is_scaled and not self._has_update else 0
        if cycle.num_without_update >= _STEPS_WITHOUT_UPDATE:
            evidence = f"{name} stepped {cycle.num_without_update} times on gradients of a scaled loss, and the scaler"
            evidence += " was asked neither step nor update: no inf is looked for, and the scale never moves"
            self.broken("scaler-not-updated", step, evidence, subject="scaler.update", severity="warning")

    @staticmethod
    def _is_as_computed(cycle: Cycle) -> bool:
        """Whether nobody has written to the gradients since backward, as one does who unscales them by hand."""
        return bool(cycle.after_backward) and len(untouched(cycle.after_backward)) == len(cycle.after_backward)

    def _check_wasted(self, step: Step, cycle: Cycle, name: str) -> None:
        is_wasted = cycle.num_dropped > 0 and len(self._known()) == 1
        cycle.num_wasted = cycle.num_wasted + 1 if is_wasted else 0
        if cycle.num_wasted >= _WASTED_STEPS or (is_wasted and cycle.num_dropped >= _MANY_DROPPED):
            num = cycle.num_dropped
            evidence = f"{name} steps on the last of {num + 1} backward passes; the gradients of {num} were dropped"
            where = self.scene.call_of(cycle.optimizer(), "zero_grad")
            self.broken("accumulation-count", step, evidence, subject=where)

    def _check_first(self, step: Step, cycle: Cycle, name: str) -> None:
        """`index % n == 0` holds at 0: the first update has one micro-batch, and counts as much as those of n."""
        if cycle.first is None:
            cycle.first = step.index, cycle.num_backward
        elif cycle.num_steps == 1 and cycle.first == (0, 1) and cycle.num_backward > 1 and len(self._known()) == 1:
            evidence = f"the first step of {name} came after 1 backward pass, and its second after {cycle.num_backward}"
            advice = "step where (index + 1) % n == 0: index % n == 0 holds for the first micro-batch"
            where = self.scene.call_of(cycle.optimizer(), "step")
            self.broken("accumulation-count", step, evidence, subject=where, advice=advice, severity="warning")

    def _sync_now(self) -> bool | None:
        """accelerate's `sync_gradients`, which all loops of a process share; None without an accumulation of its."""
        state = getattr(sys.modules.get("accelerate.state"), "GradientState", None)
        shared = getattr(state, "_shared_state", {})
        if shared.get("plugin_kwargs", {}).get("num_steps", 1) in (None, 1):
            return None
        flag = bool(shared.get("sync_gradients", True))
        if self._first_sync is None:
            self._first_sync = flag
        self._sync_moves |= flag != self._first_sync
        return flag

    def _check_sync(self, step: Step, optimizer: Any, name: str) -> None:
        """accelerate's own optimizers wait for the last micro-batch; one that was not prepared does not know of it."""
        is_early = self._sync_now() is False and self._sync_moves
        self._num_early = self._num_early + 1 if is_early else 0
        if self._num_early >= _EARLY_STEPS:
            evidence = f"{name} steps on a micro-batch of an accumulation of accelerate's that has not come to its end"
            advice = "give the optimizer to accelerator.prepare()"
            where = self.scene.call_of(optimizer, "step")
            self.broken("accumulation-count", step, evidence, subject=where, advice=advice)

    def after_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        cycle = self._cycle(optimizer)
        if cycle is None:
            return
        name = self.scene.name_of_optimizer(optimizer)
        if has_closure and step.num_backward == cycle.num_before_closure:  # Lightning's, in manual optimization
            has_closure = False
            self._check(step, cycle, optimizer)
        elif has_closure:
            self._check_empty(step, cycle, name, is_empty=not has_gradient(optimizer))
        self._check_first(step, cycle, name)
        for other in self._cycles:
            if other is not cycle and any(optimizer is one for one in other.shared_with):
                other.is_foreign = True
        cycle.num_steps += 1
        cycle.suspects = []
        cycle.renew()
        cycle.stepped_on = cycle.gradients()
        cycle.after_step = [] if has_closure else cycle.stepped_on
        if cycle.num_partly_stale:
            pairs = ((p, digest(p.grad)) for p, _, _ in cycle.after_step)
            cycle.digests = {id(p): one for p, one in pairs if one is not None}

    # Gradient scalers

    def after_scale(self, step: Step, scaled: list[Tensor]) -> None:
        self._scaled.add(scaled)

    def on_scaler(self, step: Step, scaler: Any, call: str, optimizer: Any) -> None:
        self._has_update = True
        if call == "update":
            self._stepped_by_scaler.pop(id(scaler), None)
        elif call == "step":
            self._in_scaler_step = True
            self._check_update(step, scaler, optimizer)
        elif call == "stepped":
            self._in_scaler_step = False
        cycle = None if optimizer is None else self._cycle(bare(optimizer))
        if cycle is None:
            return
        if call == "unscale_":
            cycle.is_unscaled = True
        elif call == "step":
            cycle.num_before_scaler = cycle.num_steps
            self._check_bare(step, scaler, cycle, optimizer)
        elif cycle.num_steps == cycle.num_before_scaler:  # it left the step out
            cycle.renew()
            cycle.after_step, cycle.stepped_on = [], []

    def _check_update(self, step: Step, scaler: Any, optimizer: Any) -> None:
        asked = self._stepped_by_scaler.setdefault(id(scaler), set())
        if id(optimizer) in asked:
            evidence = f"step({self.scene.name_of_optimizer(optimizer)}) a second time since the last update()"
            self.broken("scaler-not-updated", step, evidence, subject="scaler.update")
        asked.add(id(optimizer))

    def _check_bare(self, step: Step, scaler: Any, cycle: Cycle, optimizer: Any) -> None:
        cycle.num_bare = cycle.num_bare + 1 if cycle.num_backward and cycle.has_bare else 0
        if cycle.num_bare >= _BARE_STEPS and float(scaler.get_scale()) != 1:
            name = self.scene.name_of_optimizer(optimizer)
            evidence = f"the scaler divides gradients of {name} by its factor, and a loss that they come from was"
            evidence += f" differentiated without it, {cycle.num_bare} steps in a row"
            advice = "differentiate scaler.scale(loss), of every loss whose optimizer is stepped by the scaler"
            where = self.scene.call_of(optimizer, "step")
            self.broken("scaler-bypassed", step, evidence, subject=f"scaler.scale, before {where}", advice=advice)

    # Clipping

    def on_clip(self, step: Step, clip: Clip) -> None:
        if not math.isfinite(clip.limit):
            return  # the norm is wanted
        self._num_empty_clips = 0 if clip.gradients else self._num_empty_clips + 1
        if self._num_empty_clips >= _EMPTY_CLIPS:
            evidence = f"no parameter has a gradient to clip, {self._num_empty_clips} times in a row"
            self.broken("clipping-before-backward", step, evidence, subject=clip.call)
        clipped = {id(gradient) for gradient in clip.gradients}
        for cycle in self._known():
            optimizer = cycle.optimizer()
            if not any(id(p.grad) in clipped for p in held_by(optimizer)):
                continue
            name = self.scene.name_of_optimizer(optimizer)
            if cycle.is_scaled and not cycle.is_unscaled and self._is_as_computed(cycle):
                evidence = f"gradients of {name} are clipped to {clip.limit:g} while they have the scaler's factor"
                self.broken("clipping-before-unscaling", step, evidence, subject=clip.call)
            if cycle.num_steps and cycle.num_backward == 0 and untouched(cycle.stepped_on):
                evidence = f"gradients of {name} are clipped to {clip.limit:g} after it has stepped on them"
                self.broken("clipping-after-step", step, evidence, subject=clip.call)
