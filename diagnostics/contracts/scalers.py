"""Gradient scalers: each loss is scaled, each gradient unscaled once, and the scaler hears of it."""

from typing import Any

from torch import Tensor

from diagnostics.contracts.cycle import Cycle, Cycles, untouched
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scaled import Scaled
from diagnostics.contracts.scene import Scene, Step, bare

_STEPS_WITHOUT_UPDATE = _BARE_STEPS = 2


class Scalers(Family):
    """What `Order` asks of losses that are scaled, and of the scalers themselves."""

    def __init__(self, scene: Scene, reports: Reports, cycles: Cycles) -> None:
        super().__init__(scene, reports)
        self._cycles = cycles
        self._scaled = Scaled()
        self._is_scaled = False  # what the running backward differentiates
        self._has_scaled = False  # a scaled loss was differentiated in the step that runs
        self._is_inside = False  # a scaler's step
        self._is_asked = False  # a scaler was asked for more than a factor

    @property
    def is_inside(self) -> bool:
        """Whether a scaler's step runs."""
        return self._is_inside

    def forget(self) -> None:
        self._scaled.clear()
        self._is_inside = False

    def begin(self, step: Step) -> None:
        self._is_inside = self._has_scaled = False

    def end(self, step: Step) -> None:
        self._scaled.clear()

    def after_scale(self, step: Step, scaled: list[Tensor]) -> None:
        self._scaled.add(scaled)

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        self._is_scaled = self._scaled.are_in(roots)
        self._has_scaled |= self._is_scaled

    def note_reached(self, cycle: Cycle) -> None:
        """The backward that has run left gradients of this optimizer."""
        cycle.is_scaled, cycle.is_unscaled = self._is_scaled, False
        cycle.has_bare |= not self._is_scaled

    def on_scaler(self, step: Step, scaler: Any, call: str, optimizer: Any) -> None:
        self._is_asked = True
        if call == "step":
            self._is_inside = True
            self._check_update(step, scaler, optimizer)
        elif call == "stepped":
            self._is_inside = False
        cycle = None if optimizer is None else self._cycles.of(bare(optimizer))
        if cycle is None:
            return
        if call == "unscale_":
            cycle.is_unscaled = True
        elif call == "step":
            cycle.num_before_scaler = cycle.num_steps
            self._check_new(step, scaler, cycle, optimizer)
            self._check_bare(step, scaler, cycle, optimizer)
        elif cycle.num_steps == cycle.num_before_scaler:  # it left the step out
            cycle.renew()
            cycle.after_step, cycle.stepped_on = [], []

    def check(self, step: Step, cycle: Cycle, name: str) -> None:
        """The optimizer, by this name, is about to step."""
        is_scaled = cycle.is_scaled and not cycle.is_unscaled and not self._is_inside
        if is_scaled and is_as_computed(cycle):
            evidence = f"the loss was scaled, and {name} steps on gradients that still have the factor"
            self.broken("scaler-bypassed", step, evidence, subject="scaler.step")
            return
        cycle.num_without_update = cycle.num_without_update + 1 if is_scaled and not self._is_asked else 0
        if cycle.num_without_update >= _STEPS_WITHOUT_UPDATE:
            evidence = f"{name} stepped {cycle.num_without_update} times on gradients of a scaled loss, and the scaler"
            evidence += " was asked neither step nor update: no inf is looked for, and the scale never moves"
            self.broken("scaler-not-updated", step, evidence, subject="scaler.update", severity="warning")

    def _check_update(self, step: Step, scaler: Any, optimizer: Any) -> None:
        """The scaler knows itself what it has stepped since its last update, which may be outside of the step."""
        state = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer), {})
        if getattr(state.get("stage"), "name", "") == "STEPPED":
            evidence = f"step({self.scene.name_of_optimizer(optimizer)}) a second time since the last update()"
            self.broken("scaler-not-updated", step, evidence, subject="scaler.update")

    def _check_new(self, step: Step, scaler: Any, cycle: Cycle, optimizer: Any) -> None:
        """A scaler that is made anew, once an epoch, begins with a scale that may overflow for as long.

        A warning: tasks may have scalers of their own.
        """
        is_new = cycle.has_scaler and scaler not in cycle.scalers
        cycle.scalers.add(scaler)
        cycle.has_scaler = True
        if is_new:
            evidence = (
                f"another scaler steps {self.scene.name_of_optimizer(optimizer)} than before, with a scale of its own"
            )
            advice = "make one scaler for the whole training, outside of the loop over epochs"
            where = "GradScaler"
            self.broken("scaler-not-updated", step, evidence, subject=where, severity="warning", advice=advice)

    def _check_bare(self, step: Step, scaler: Any, cycle: Cycle, optimizer: Any) -> None:
        cycle.num_bare = cycle.num_bare + 1 if cycle.num_backward and cycle.has_bare else 0
        if cycle.num_bare == _BARE_STEPS and float(scaler.get_scale()) != 1:  # read once, for it is on the host
            name = self.scene.name_of_optimizer(optimizer)
            evidence = f"the scaler divides gradients of {name} by its factor, and a loss that they come from was"
            evidence += f" differentiated without it, {cycle.num_bare} steps in a row"
            advice = "differentiate scaler.scale(loss), of every loss whose optimizer is stepped by the scaler"
            where = self.scene.call_of(optimizer, "step")
            severity = "warning" if self._has_scaled else "alarm"  # the factor may be in what was computed before
            where = f"scaler.scale, before {where}"
            self.broken("scaler-bypassed", step, evidence, subject=where, advice=advice, severity=severity)


def is_as_computed(cycle: Cycle) -> bool:
    """Whether nobody has written to the gradients since backward, as one does who unscales them by hand."""
    return bool(cycle.after_backward) and len(untouched(cycle.after_backward)) == len(cycle.after_backward)
