"""Averages of 16 bits that somebody keeps of the weights: whether what is added to them reaches them."""

from torch import Tensor, nn

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step, held_by, is_half
from diagnostics.tensors import strided

_FIRST_STEPS, _STEPS = 4, 2
_LOST = 0.95
_NUM_ELEMENTS, _MOST = 1024, 64  # of a parameter; parameters


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
        self._before = [(p, p._version, few) for p in chosen if (few := _few(p)) is not None]

    def end(self, step: Step) -> None:
        before, self._before = self._before, []
        self._num_steps += 1
        written = [(p, few) for p, version, few in before if p._version != version]
        if not written or step.is_skipped:
            return
        counts = [(int((now == few).sum()), few.numel()) for p, few in written if (now := _few(p)) is not None]
        same, num = (sum(column) for column in zip(*counts, strict=True))
        self._num_lost = self._num_lost + 1 if same > _LOST * num else 0
        if self._num_lost >= _STEPS:
            parameter = written[0][0]
            kind = str(parameter.dtype).removeprefix("torch.")
            evidence = f"the step writes to it, and {100 * same / num:.0f} % of its {kind} elements keep their bits"
            advice = "keep averages in float32: what a step adds is below half of the last digit"
            self.broken_in("half-precision-weights", step, [p for p, _ in written], evidence, advice=advice)

    def forget(self) -> None:
        self._before = []


def _few(parameter: Tensor) -> Tensor | None:
    """A copy of some of its elements, (n,)."""
    values = strided(parameter)
    if values is None or not values.numel():
        return None
    flat = values.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _NUM_ELEMENTS)][:_NUM_ELEMENTS].clone()
