"""Averages of 16 bits that somebody keeps of the weights: whether what is added to them reaches them."""

from torch import Tensor, nn

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import few, read
from diagnostics.contracts.scene import Scene, Step, held_by, is_half
from diagnostics.tensors import strided

_FIRST_STEPS, _STEPS = 4, 2
_LOST = 0.95
_MOST = 64  # parameters


class Averages(Family):
    """Parameters of 16 bits that no optimizer holds and that steps write to. In the first steps."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num_steps = self._num_lost = 0
        self._before: list[tuple[nn.Parameter, int, Tensor]] = []

    def begin(self, step: Step) -> None:
        self._before = []
        if self._num_steps >= _FIRST_STEPS:
            return
        held = {id(p) for optimizer in self.scene.bare_optimizers() for p in held_by(optimizer)}
        found = [p for key, p in self.scene.parameters().items() if is_half(p.dtype) and key not in held]
        chosen = [p for p in found if not p.requires_grad][:_MOST]
        self._before = [(p, p._version, few(p).clone()) for p in chosen if strided(p) is not None and p.numel()]

    def end(self, step: Step) -> None:
        before, self._before = self._before, []
        self._num_steps += 1
        written = [(p, values) for p, version, values in before if p._version != version]
        if not written or step.is_skipped:
            return
        same = sum(read([(few(p) == values).sum() for p, values in written]))
        num = sum(values.numel() for _, values in written)
        self._num_lost = self._num_lost + 1 if same > _LOST * num else 0
        if self._num_lost >= _STEPS:
            parameter = written[0][0]
            kind = str(parameter.dtype).removeprefix("torch.")
            evidence = f"the step writes to it, and {100 * same / num:.0f} % of its {kind} elements keep their bits"
            advice = "keep averages in float32: what a step adds is below half of the last digit"
            self.broken_in("half-precision-weights", step, [p for p, _ in written], evidence, advice=advice)

    def forget(self) -> None:
        self._before = []
