"""Loops that compute gradients and never use them, and rates that are zero."""

import gc
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, Step, bare, largest_rate
from diagnostics.tensors import strided

_DROPPED = 2
_DROPPED_OF_SEVERAL = 8  # where an optimizer of another model steps: a GAN's critic takes several steps in between
_WITHOUT_BACKWARD = _HELD = 3
_WITHOUT_BACKWARD_ALARM = 1000
_ZERO_RATES = 3  # in a row: a warm-up from 0 has one
_ZERO_RATES_ALARM, _ZERO_RATES_WITH_SCHEDULE = 5, 50
_WAITING = 2  # steps after the first
_OFTEN = 2  # steps in a row with more than one step of the scheduler
_NUM_PARAMETERS, _NUM_ELEMENTS = 16, 64


class Idle(Family):
    """Asks whether anything moves at all, until something does."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._has_moved = False
        self._parameters: list[Tensor] = []
        self._at_first: list[Tensor] = []
        self._versions: list[int] = []
        self._is_computed = False  # gradients, that no optimizer has used
        self._num_dropped = self._num_without = 0
        self._num_held = 0  # steps in a row that have added to gradients
        self._foreign: str | None = None  # an optimizer that stepped, and holds nothing of the models

    def begin(self, step: Step) -> None:
        if self._has_moved:
            return
        if not self._parameters:
            self._choose()
        self._look_for_drops()

    def _choose(self) -> None:
        trained = [p for p in self.scene.parameters().values() if p.requires_grad and strided(p) is not None]
        chosen = trained[:: max(1, len(trained) // _NUM_PARAMETERS)][:_NUM_PARAMETERS]
        self._parameters, self._at_first = list(chosen), [_few(p) for p in chosen]
        self._versions = [p._version for p in chosen]

    def _look_for_drops(self) -> None:
        """Gradients were set to None by hand, or outside of the step."""
        if self._is_computed and all(p.grad is None for p in self._parameters):
            self._drop()

    def _drop(self) -> None:
        """What several steps have added up is as much as several drops."""
        self._num_dropped += _DROPPED if self._num_held >= _HELD and self._foreign is None else 1
        self._is_computed, self._num_held = False, 0

    def after_backward(self, step: Step) -> None:
        if not self._has_moved:
            self._look_for_drops()
            self._is_computed = any(p.grad is not None for p in self._parameters)

    def after_clear(self, step: Step, owner: Any) -> None:
        if self._is_computed:
            self._drop()

    def on_scaler(self, step: Step, scaler: Any, call: str, optimizer: Any) -> None:
        self._has_moved |= call == "step"  # or was left out

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if not self._has_moved and not self.scene.concerns(optimizer):
            self._foreign = type(optimizer).__name__

    def end(self, step: Step) -> None:
        if self._has_moved:
            return
        self._has_moved = step.num_optimizer_steps > 0 or self._versions != [p._version for p in self._parameters]
        if self._has_moved:
            self._at_first = []
            return
        self._num_held += self._is_computed
        self._num_without = 0 if step.num_backward else self._num_without + 1
        most = _DROPPED if self._foreign is None else _DROPPED_OF_SEVERAL
        is_idle = self._num_dropped >= most or self._num_without >= _WITHOUT_BACKWARD
        if not is_idle or not self._parameters:
            return
        if self._differ():  # written to through `.data`
            self._has_moved = True
            return
        what = "gradients were dropped, those of one step after the other or of several at once, and never used"
        if self._num_dropped < _DROPPED:
            what = f"nothing was differentiated in {self._num_without} steps"
        foreign = f"; {self._foreign}, which steps, holds none of the model's parameters" if self._foreign else ""
        is_long = self._num_dropped >= most or self._num_without >= _WITHOUT_BACKWARD_ALARM  # a buffer may fill first
        evidence, severity = f"{what}: no parameter has changed{foreign}", "alarm" if is_long else "warning"
        self.broken("no-optimizer-step", step, evidence, subject="optimizer.step", severity=severity)

    def _differ(self) -> bool:
        """Reads on the host: only where something is suspected."""
        pairs = zip(self._parameters, self._at_first, strict=True)
        return any(int(_few(p)) != int(before) for p, before in pairs)

    def forget(self) -> None:
        self._is_computed = False


def _few(parameter: Tensor) -> Tensor:
    """() int64: stands for the bits of a few of its elements."""
    values = strided(parameter)
    found = None if values is None else digest(values.detach().flatten()[:_NUM_ELEMENTS])
    return torch.zeros((), dtype=torch.int64) if found is None else found


class Rates(Family):
    """Learning rates that are zero, and schedules that step too often or too early."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num_zero: dict[int, int] = {}
        self._num_waiting: dict[int, int] = {}  # scheduler -> steps of its optimizer in a row
        self._schedules: dict[int, list[tuple[Any, int, int]]] = {}

    def on_scaler(self, step: Step, scaler: Any, call: str, optimizer: Any) -> None:
        """A step that the scaler leaves out counts as one."""
        known = self._schedules.get(id(bare(optimizer)), ()) if call == "stepped" else ()
        if known:
            now = [(one, before if one() is None else _count(one()), often) for one, before, often in known]
            self._schedules[id(bare(optimizer))] = now

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if not self.scene.concerns(optimizer):
            return
        moves = self._check_schedules(step, optimizer)
        rate = largest_rate(optimizer)
        count = self._num_zero.get(id(optimizer), 0) + 1 if rate == 0 else 0
        self._num_zero[id(optimizer)] = count
        if count >= _ZERO_RATES:
            name, place = self.scene.name_of_optimizer(optimizer), self.scene.call_of(optimizer, "param_groups[0].lr")
            evidence = f"the rate of {name} was 0 in {count} of its steps in a row"
            is_long = count >= (_ZERO_RATES_WITH_SCHEDULE if moves else _ZERO_RATES_ALARM)
            severity = "alarm" if is_long else "warning"
            self.broken("learning-rate-zero", step, evidence, subject=place, severity=severity)

    def _check_schedules(self, step: Step, optimizer: Any) -> bool:
        """Whether a scheduler of it has moved."""
        known = self._schedules.get(id(optimizer))
        name, several = self.scene.name_of_optimizer(optimizer), len(self.scene.optimizers) > 1
        if known is None:
            found = self._look_for_early(step, optimizer)
            self._schedules[id(optimizer)] = [(weakref.ref(one), _count(one), 0) for one in found]
            return True
        now = []
        for reference, before, often in known:
            one = reference()
            count = before if one is None else _count(one)
            often = often + 1 if count - before >= 2 else 0
            now.append((reference, count, often))
            if often >= _OFTEN and not several and not _is_of_accelerate():
                evidence = f"{type(one).__name__} stepped {count - before} times for one step of {name}, {often} times"
                self.broken("scheduler-count", step, evidence, subject=_step_of(one))
            if one is not None:
                self._check_length(step, one, name)
                self._check_cycle(step, one, name, has_moved=count != before)
        self._schedules[id(optimizer)] = now
        return any(count != before for (_, count, _), (_, before, _) in zip(now, known, strict=True))

    def _check_cycle(self, step: Step, scheduler: Any, name: str, *, has_moved: bool) -> None:
        """A cycle is made for steps, and is stepped with epochs."""
        if not isinstance(scheduler, (torch.optim.lr_scheduler.OneCycleLR, torch.optim.lr_scheduler.CyclicLR)):
            return
        key = id(scheduler)
        self._num_waiting[key] = 0 if has_moved else self._num_waiting.get(key, 0) + 1
        if self._num_waiting[key] >= _WAITING:
            evidence = f"{name} has stepped {_WAITING + 1} times, and {type(scheduler).__name__}, which is made for"
            advice, where = "call scheduler.step() after each optimizer.step(), not once an epoch", _step_of(scheduler)
            self.broken(
                "scheduler-count", step, f"{evidence} steps, has not", subject=where, severity="warning", advice=advice
            )

    def end(self, step: Step) -> None:
        """An optimizer that waits for the end of an accumulation, and a scheduler that does not."""
        for optimizer in self.scene.bare_optimizers() if step.index == 0 and not step.is_skipped else ():
            if id(optimizer) not in self._schedules and step.num_backward:
                self._look_for_early(step, optimizer)

    def _look_for_early(self, step: Step, optimizer: Any) -> list[Any]:
        """Its schedulers. Reports those that have stepped, while it has not."""
        found = _schedulers_of(optimizer)
        is_first = step.index == 0 and not getattr(optimizer, "state", None)
        for one in found if is_first else ():
            if _count(one) == 2:  # one made it; after a resume there are more
                name = self.scene.name_of_optimizer(optimizer)
                evidence = f"{type(one).__name__} has stepped before the first step of {name}"
                self.broken("scheduler-order", step, evidence, subject=_step_of(one))
        return found

    def _check_length(self, step: Step, scheduler: Any, name: str) -> None:
        """Half a cosine that goes on is a rate that rises again."""
        length, last = getattr(scheduler, "T_max", None), getattr(scheduler, "last_epoch", None)
        is_cosine = isinstance(scheduler, torch.optim.lr_scheduler.CosineAnnealingLR)
        if is_cosine and isinstance(length, int) and isinstance(last, int) and last > length:
            evidence = f"{type(scheduler).__name__} was made for {length} steps (T_max) and has taken {last}"
            evidence += f": the rate of {name} rises again"
            self.broken("scheduler-count", step, evidence, subject=_step_of(scheduler), severity="warning")


def _step_of(scheduler: Any) -> str:
    return f"scheduler.step ({type(scheduler).__name__})"


def _count(scheduler: Any) -> int:
    return int(getattr(scheduler, "_step_count", 0))


def _is_of_accelerate() -> bool:
    """accelerate steps a scheduler once for each of several processes, on purpose."""
    state = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
    return int(getattr(state, "_shared_state", {}).get("num_processes", 1)) > 1


def _schedulers_of(optimizer: Any) -> list[Any]:
    """torch's schedulers of an optimizer, wherever they are."""
    kind = torch.optim.lr_scheduler.LRScheduler
    holders = gc.get_referrers(optimizer)  # objects, or their dictionaries where those were asked for
    attributes = [one for one in holders if type(one) is dict and one.get("optimizer") is optimizer]
    found = [*holders, *(gc.get_referrers(*attributes) if attributes else ())]
    found = [one for one in found if issubclass(type(one), kind) and getattr(one, "optimizer", None) is optimizer]
    return list({id(one): one for one in found}.values())
