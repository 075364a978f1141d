"""What an optimizer's step changes: bits of the parameters before and after it.

Looked at in the first steps of each optimizer and where a step is due; one read on the host, at the step's end.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step, held_by, is_half
from diagnostics.contracts.zero_gradients import ZeroGradients
from diagnostics.tensors import dense, strided

_FIRST_STEPS = 3
_STEPS = 2  # in which something stands still
_FEWEST = 8  # elements of a parameter that stand still
_NUM_ELEMENTS = 4096  # of a parameter of 16 bits
_LOST = 0.5
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensor: Tensor) -> Tensor | None:
    """() int64 on the tensor's device: equal for equal bits, whatever the order of summation. None without memory."""
    values = dense(tensor)
    if values is None or not values.numel():
        return None
    bits = values.view(_BITS[values.dtype.itemsize]) if values.dtype is not torch.bool else values
    total: Tensor = bits.sum(dtype=torch.int64)
    return total


@dataclass
class _Look:
    """Of one optimizer's step."""

    optimizer: Any
    parameters: list[nn.Parameter]
    rates: list[float | None]
    before: list[Tensor]
    gradients: list[Tensor | None]
    """() each: the largest magnitude."""
    halves: list[tuple[int, Tensor, Tensor]]
    """Number of a parameter, copies of a few of its elements and of their gradients."""
    after: list[Tensor] = field(default_factory=list)
    lost: list[Tensor] = field(default_factory=list)
    """(2,) each: elements that have a gradient, and those of them that did not change."""
    sizes: list[Tensor] = field(default_factory=list)
    """() each: the largest magnitude of the parameter."""


class Motion(Family):
    """A gradient that is not zero moves its parameter; what is frozen keeps its bits."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._num_looks: dict[int, int] = {}
        self._still: dict[int, int] = {}  # parameter -> looks in a row
        self._num_lost: dict[int, int] = {}
        self._zeros = ZeroGradients(scene, reports)
        self._wanted: set[int] = set()  # optimizers that hold a frozen parameter with a gradient
        self._asked: set[int] = set()  # such parameters that were looked at
        self._running: list[_Look] = []
        self._looks: list[_Look] = []
        self._trained: set[int] = set()  # at a backward of this step

    def begin(self, step: Step) -> None:
        self._running, self._looks, self._trained = [], [], set()

    def before_backward(self, step: Step, roots: list[Tensor]) -> None:
        """A GAN's loop may freeze a model between its backward and its optimizer's step."""
        optimizers = self.scene.bare_optimizers()
        if step.is_due or self._wanted or any(self._num_looks.get(id(one), 0) < _FIRST_STEPS for one in optimizers):
            self._trained |= {id(p) for one in optimizers for p in held_by(one) if p.requires_grad}

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        num = self._num_looks.get(id(optimizer), 0)
        if has_closure or not self.scene.concerns(optimizer):
            return
        if num >= _FIRST_STEPS and not step.is_due:
            self._look_at_frozen(optimizer)
            return
        self._num_looks[id(optimizer)] = num + 1
        self._running.append(_look(optimizer))

    def _look_at_frozen(self, optimizer: Any) -> None:
        """What was frozen since, and has a gradient left: in the next step, for it may have trained in this one."""
        left = [p for p in held_by(optimizer) if not p.requires_grad and p.grad is not None]
        left = [p for p in left if id(p) not in self._asked]
        if left and id(optimizer) in self._wanted:
            self._wanted.discard(id(optimizer))
            self._asked |= {id(p) for p in left}
            self._running.append(_look(optimizer, {id(p) for p in left}))
        elif left:
            self._wanted.add(id(optimizer))

    def after_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        look = next((one for one in self._running if one.optimizer is optimizer), None)
        if look is None:
            return
        self._running.remove(look)
        look.after = [found for p in look.parameters if (found := digest(p)) is not None]
        look.sizes = [_largest(p) for p in look.parameters]
        for number, values, gradients in look.halves:
            there = gradients != 0
            same = there & (few(look.parameters[number]) == values)
            look.lost.append(torch.stack([there.sum(), same.sum()]))
        self._looks.append(look)

    def end(self, step: Step) -> None:
        looks, self._looks, self._running = self._looks, [], []
        for look in looks:
            if len(look.after) == len(look.before) and not step.is_skipped and not _is_left_out(look.optimizer):
                self._judge(step, look)

    def forget(self) -> None:
        self._running, self._looks = [], []

    def _judge(self, step: Step, look: _Look) -> None:
        moves = [after - before for after, before in zip(look.after, look.before, strict=True)]
        found = read([*moves, *(torch.zeros(()) if g is None else g for g in look.gradients), *look.sizes])
        num = len(moves)
        moved, gradients, sizes = found[:num], found[num : 2 * num], found[2 * num :]
        name = self.scene.name_of_optimizer(look.optimizer)
        frozen, still = [], []
        self._zeros.judge(step, name, look.parameters, gradients)
        for number, parameter in enumerate(look.parameters):
            if not parameter.requires_grad:
                if moved[number] and id(parameter) not in self._trained:
                    frozen.append(parameter)
                continue
            stands = not moved[number] and gradients[number] > 0 and _should_move(look, number, gradients, sizes)
            count = self._still.get(id(parameter), 0) + 1 if stands else 0
            self._still[id(parameter)] = count
            if count >= _STEPS:
                still.append(
                    (parameter, f"a gradient of up to {gradients[number]:.3g}, a rate of {look.rates[number]}")
                )
        if frozen:
            evidence = f"{name} changed it in its step, though requires_grad is False"
            self.broken_in("frozen-parameter-moves", step, frozen, evidence)
        if still:
            evidence = f"{still[0][1]}, and the step of {name} changed no bit, {_STEPS} times"
            self.broken_in("parameter-stands-still", step, [p for p, _ in still], evidence)
        self._judge_halves(step, look, name)

    def _judge_halves(self, step: Step, look: _Look, name: str) -> None:
        if not look.lost:
            return
        counts = torch.stack([one.cpu() for one in look.lost])
        num, lost = counts.sum(0).tolist()
        is_lost = num > 0 and lost > _LOST * num
        worst = int((counts[:, 1] - _LOST * counts[:, 0]).argmax())
        kind = str(look.parameters[look.halves[worst][0]].dtype).removeprefix("torch.")
        if self._count_lost(id(look.optimizer), is_lost=is_lost) >= _STEPS:
            parameter = look.parameters[look.halves[worst][0]]
            evidence = f"{100 * lost / num:.0f} % of {kind} elements with a gradient did not change in a step of {name}"
            self.broken("half-precision-weights", step, evidence, parameter=self.scene.name_of(parameter))
            return
        whole = []
        for (number, _, _), (there, same) in zip(look.halves, counts.tolist(), strict=True):
            parameter = look.parameters[number]
            if self._count_lost(id(parameter), is_lost=there == same >= _FEWEST) >= _STEPS:
                whole.append(parameter)
        if whole:
            evidence = f"no element of it changed in {_STEPS} steps of {name}, and each of {_FEWEST} or more has a"
            self.broken_in("half-precision-weights", step, whole, f"{evidence} gradient: {kind} rounds the update away")

    def _count_lost(self, key: int, *, is_lost: bool) -> int:
        """Looks in a row, of an optimizer or a parameter."""
        count = self._num_lost[key] = self._num_lost.get(key, 0) + 1 if is_lost else 0
        return count


def _look(optimizer: Any, only: set[int] | None = None) -> _Look:
    """only: ids of parameters; all by default."""
    parameters, rates = [], []
    for group in getattr(optimizer, "param_groups", ()):
        rate = group.get("lr")
        for parameter in group["params"]:
            is_asked = only is None or id(parameter) in only
            if is_asked and strided(parameter) is not None and parameter.numel():
                parameters.append(parameter)
                rates.append(float(rate) if isinstance(rate, (int, float)) else None)
    is_torchs = type(optimizer).__module__.startswith("torch.optim")
    halves = []
    for number, parameter in enumerate(parameters):
        grad = parameter.grad
        is_asked = is_torchs and is_half(parameter.dtype) and parameter.requires_grad and rates[number] != 0
        if is_asked and grad is not None and grad.layout is torch.strided:
            halves.append((number, few(parameter).clone(), few(grad).clone()))
    before = [found for p in parameters if (found := digest(p)) is not None]
    gradients = [None if p.grad is None else _largest(p.grad) for p in parameters]
    return _Look(optimizer, parameters, rates, before, gradients, halves)


def few(tensor: Tensor) -> Tensor:
    """Some of the elements of a tensor with memory of its own, evenly over it, (n,)."""
    values = strided(tensor)
    assert values is not None
    flat = values.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _NUM_ELEMENTS)][:_NUM_ELEMENTS]


def _largest(tensor: Tensor) -> Tensor:
    """() float32 on its device: the largest magnitude, 0 where it holds nothing."""
    values = dense(tensor)
    if values is None or not values.numel():
        return torch.zeros(())
    low, high = torch.aminmax(values.float() if values.dtype.itemsize == 1 else values)
    return torch.maximum(-low, high).float()


def read(numbers: list[Tensor]) -> list[float]:
    """() each, on the host; one read for each device."""
    by_device: dict[torch.device, list[int]] = {}
    for place, number in enumerate(numbers):
        by_device.setdefault(number.device, []).append(place)
    found = [0.0] * len(numbers)
    for places in by_device.values():
        for place, value in zip(places, torch.stack([numbers[i].double() for i in places]).tolist(), strict=True):
            found[place] = value
    return found


def _should_move(look: _Look, number: int, gradients: list[float], sizes: list[float]) -> bool:
    """Whether the update is larger than rounding of the largest element, for an optimizer that follows the gradient and
    for one that normalises it."""
    rate, parameter = look.rates[number], look.parameters[number]
    if rate is None or rate <= 0 or is_half(parameter.dtype):
        return False
    eps = torch.finfo(parameter.dtype).eps if parameter.dtype.is_floating_point else 1.0
    return rate * min(1.0, gradients[number]) > 2 * eps * max(sizes[number], 1e-30)


def _is_left_out(optimizer: Any) -> bool:
    """Whether a gradient scaler made a fused optimizer skip: it reads that itself."""
    flag = getattr(optimizer, "found_inf", None)
    return isinstance(flag, Tensor) and bool(flag.any())
