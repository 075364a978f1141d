"""Clipping: between backward and the step, once unscaled, of what is stepped."""

import math

from diagnostics.contracts.calls import Clip
from diagnostics.contracts.cycle import Cycle, Cycles, untouched
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scalers import is_as_computed
from diagnostics.contracts.scene import Scene, Step, held_by

_EMPTY_CLIPS = _VAIN_CLIPS = 2


class Clips(Family):
    """What `Order` asks of calls that clip gradients."""

    def __init__(self, scene: Scene, reports: Reports, cycles: Cycles) -> None:
        super().__init__(scene, reports)
        self._cycles = cycles
        self._calls: list[tuple[str, bool]] = []  # of the step that runs: which, and whether there was a gradient
        self._num_empty = 0  # steps in a row

    def begin(self, step: Step) -> None:
        self._calls = []

    def end(self, step: Step) -> None:
        """One part may be frozen; where all clips of a step find nothing, they come too early."""
        if not self._calls or not step.num_optimizer_steps:
            return
        self._num_empty = 0 if any(found for _, found in self._calls) else self._num_empty + 1
        if self._num_empty >= _EMPTY_CLIPS:
            evidence = f"no parameter has a gradient to clip, {self._num_empty} steps in a row"
            self.broken("clipping-before-backward", step, evidence, subject=self._calls[0][0])

    def on_clip(self, step: Step, clip: Clip) -> None:
        if not math.isfinite(clip.limit):
            return  # the norm is wanted
        self._calls.append((clip.call, bool(clip.gradients)))
        clipped = {id(gradient) for gradient in clip.gradients}
        for cycle in self._cycles.known():
            optimizer = cycle.optimizer()
            if not any(id(p.grad) in clipped for p in held_by(optimizer)):
                continue
            cycle.clipped_by = clip.call if cycle.num_backward else None
            name = self.scene.name_of_optimizer(optimizer)
            if cycle.is_scaled and not cycle.is_unscaled and is_as_computed(cycle):
                evidence = f"gradients of {name} are clipped to {clip.limit:g} while they have the scaler's factor"
                self.broken("clipping-before-unscaling", step, evidence, subject=clip.call)
            if cycle.num_steps and cycle.num_backward == 0 and untouched(cycle.stepped_on):
                evidence = f"gradients of {name} are clipped to {clip.limit:g} after it has stepped on them"
                self.broken("clipping-after-step", step, evidence, subject=clip.call)

    def note_cleared(self, step: Step, cycle: Cycle) -> None:
        """Gradients of an optimizer are cleared: it has not stepped since they were clipped, or it has."""
        call, cycle.clipped_by = cycle.clipped_by, None
        if call is None or cycle.num_steps == 0:
            return
        is_next = cycle.num_steps - cycle.num_steps_of_vain_clip == 1
        cycle.num_vain_clips = cycle.num_vain_clips + 1 if is_next else 1
        cycle.num_steps_of_vain_clip = cycle.num_steps
        if cycle.num_vain_clips >= _VAIN_CLIPS:
            name = self.scene.name_of_optimizer(cycle.optimizer())
            evidence = f"gradients of {name} are clipped and cleared before it steps, {cycle.num_vain_clips} times"
            advice = "clip the parameters of the optimizer that is stepped next"
            self.broken("clipping-before-backward", step, evidence, subject=f"{call} of {name}", advice=advice)
