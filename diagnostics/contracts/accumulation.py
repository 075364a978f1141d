"""accelerate's accumulation: who steps before its end, and whether anybody steps at it."""

import sys
from typing import Any

from diagnostics.contracts.cycle import Cycles
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step

_EARLY_STEPS = _UNUSED = 2


class Accumulation(Family):
    """What `Order` asks of loops with an Accelerator."""

    def __init__(self, scene: Scene, reports: Reports, cycles: Cycles) -> None:
        super().__init__(scene, reports)
        self._cycles = cycles
        self._num_early = 0  # steps in a row before an accumulation's end
        self._first_sync: bool | None = None
        self._num_inside = 0  # micro-batches in a row of which none ended an accumulation
        self._num_unused = 0  # ends of an accumulation in a row without a step
        self._versions: list[int] | None = None  # of a few parameters at such an end
        self._sync_moves = False  # accelerate's state is of this loop, not left by another one in this process

    def forget(self) -> None:
        self._versions = None

    def begin(self, step: Step) -> None:
        self._sync_moves |= step.is_accelerated
        self._sync_now()
        self._check_unused(step)

    def end(self, step: Step) -> None:
        self._check_endless(step)
        is_end = step.is_accelerated and self._sync_now() is True and step.num_backward and not step.is_skipped
        self._num_unused = 0 if step.num_optimizer_steps else self._num_unused
        if is_end and not step.num_optimizer_steps:
            self._versions = [p._version for cycle in self._cycles.known() for p in cycle.samples]

    def _check_endless(self, step: Step) -> None:
        """More micro-batches than accelerate accumulates, and none was the last: accumulate() was entered once."""
        is_inside = step.is_accelerated and self._sync_now() is False and step.num_backward
        self._num_inside = self._num_inside + 1 if is_inside else 0
        if is_inside and self._num_inside >= self._length() > 1:
            evidence = f"{self._num_inside} micro-batches in a row, where accelerate accumulates {self._length()}, and"
            evidence += " none was the last"
            advice = "enter accelerator.accumulate(model) anew for each micro-batch, inside of the loop"
            self.broken("no-optimizer-step", step, evidence, subject="accelerator.accumulate", advice=advice)

    def _check_unused(self, step: Step) -> None:
        """The last step was an accumulation's end, and no optimizer has stepped in it or after it."""
        versions, self._versions = self._versions, None
        if not versions or versions != [p._version for cycle in self._cycles.known() for p in cycle.samples]:
            return
        self._num_unused += 1
        evidence = "accelerate's accumulation came to its end and no optimizer stepped"
        evidence += f", {self._num_unused} times in a row: step() in between does nothing"
        advice = "call optimizer.step() in every micro-batch, accelerate leaves out what is too early"
        severity = "alarm" if self._num_unused >= _UNUSED else "warning"
        self.broken("no-optimizer-step", step, evidence, subject="optimizer.step", severity=severity, advice=advice)

    def check(self, step: Step, optimizer: Any, name: str) -> None:
        """The optimizer, by this name, is about to step. Those of accelerate wait for the last micro-batch; one that
        was not prepared does not know of it."""
        is_early = self._sync_now() is False and self._sync_moves
        self._num_early = self._num_early + 1 if is_early else 0
        if self._num_early >= _EARLY_STEPS:
            evidence = f"{name} steps on a micro-batch of an accumulation of accelerate's that has not come to its end"
            advice = "give the optimizer to accelerator.prepare()"
            where = self.scene.call_of(optimizer, "step")
            self.broken("accumulation-count", step, evidence, subject=where, advice=advice)

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

    @staticmethod
    def _length() -> int:
        """Micro-batches of an accumulation of accelerate's."""
        state = getattr(sys.modules.get("accelerate.state"), "GradientState", None)
        return int(getattr(state, "_shared_state", {}).get("plugin_kwargs", {}).get("num_steps") or 1)
