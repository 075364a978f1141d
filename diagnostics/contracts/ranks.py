"""Several processes that train one model: parameters, gradients and batches, compared in the first steps and where a
step is due.

Every rank takes the same collectives in the same steps, of a group that trains one model.
"""

import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics.contracts.draws import random_state
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, Step, held_by, is_sharded
from diagnostics.modules import walk
from diagnostics.ranks import num_ranks, rank
from diagnostics.tensors import strided

_LOOKS = 2
_MOST_INPUTS = 16
_FEW_FLOATS, _FEW_INTEGERS = 4, 64  # elements that may be the same by chance, or by rights
_FIRST_STEPS = 4  # an accumulation steps in the last of several


class Ranks(Family):
    """What must be the same on all ranks is, and what must not be is not."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._were_same: bool | None = None  # parameters, at the first look
        self._num_shared: dict[str, int] = {}  # input -> looks in a row
        self._num_drawn_alike = self._num_apart = 0
        self._random_state = 0
        self._num_steps = 0
        self._gradients: list[Tensor] | None = None
        self._last: dict[str, int] = {}  # input -> its bits at the last look
        modules = [module for model in scene.models for _, module in walk(model)]
        wrappers = [module for module in modules if isinstance(module, DistributedDataParallel)]
        self._is_wrapped = bool(wrappers)
        self._unreduced = [p for one in wrappers for p in _left_out_by(one)]
        self._looks = False

    def begin(self, step: Step) -> None:
        self._looks = (step.is_due or self._num_steps < _FIRST_STEPS) and num_ranks() > 1
        self._num_steps += 1
        self._gradients = None
        self._check_unreduced(step)
        if self._looks and self._were_same is None:
            found = self._gathered([_joint([_digest_or_zero(p) for p in self._unsharded().values()])])
            self._were_same = len({one for (one,) in found}) == 1
        self._random_state = random_state() if self._looks else 0

    def _check_unreduced(self, step: Step) -> None:
        """What began to train after DistributedDataParallel was made is not averaged. No collective."""
        left = [p for p in self._unreduced if p.requires_grad]
        if left:
            evidence = "it trains, and DistributedDataParallel, which was made before it did, does not average it"
            advice = "set requires_grad before the model is wrapped, or wrap it anew"
            self.broken_in("gradients-not-averaged", step, left, evidence, advice=advice)

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if self._looks and self._gradients is None and not has_closure and self.scene.concerns(optimizer):
            held = {id(p) for p in held_by(optimizer)}
            self._gradients = [_digest_or_zero(p.grad if key in held else None) for key, p in self._unsharded().items()]

    def end(self, step: Step) -> None:
        if not self._looks:
            return
        whole, grads = [_digest_or_zero(p) for p in self._unsharded().values()], self._gradients or []
        inputs = self._inputs_of(step)
        names_of_inputs, drawn = zlib.crc32(repr(list(inputs)).encode()), [self._random_state, random_state()]
        joint = [_joint(whole), _joint(grads), len(whole), names_of_inputs, len(inputs), hash(tuple(drawn))]
        found = self._gathered([*joint, drawn[0] != drawn[1], self._gradients is not None, step.is_skipped])
        parameters, gradients, sizes, names, num_inputs, states, draws, stepped, skipped = zip(*found, strict=True)
        if any(skipped):
            return
        are_same, can_name = len(set(parameters)) == 1, len(set(sizes)) == 1
        if not are_same and (self._were_same or self._is_wrapped):
            evidence = f"{len(set(parameters))} different states on {len(found)} ranks after the step"
            self._name("ranks-differ", step, whole if can_name else [], evidence)
        if self._were_same and all(stepped) and len(set(gradients)) > 1:
            evidence = f"{len(set(gradients))} different gradients on {len(found)} ranks when the optimizer steps"
            self._name("gradients-not-averaged", step, grads if can_name else [], evidence)
        apart = not are_same and not self._were_same and not self._is_wrapped and all(stepped) and can_name
        self._num_apart = self._num_apart + 1 if apart and len(set(gradients)) == 1 and any(gradients) else 0
        if self._num_apart >= _LOOKS:
            evidence = f"{len(found)} ranks step on the same gradients, and their parameters differ since the beginning"
            advice = "broadcast the parameters of rank 0 before the first step, or make them from one seed"
            self._name("ranks-differ", step, whole, evidence, advice=advice)
        if are_same and len(set(names)) == 1 and min(num_inputs) and not self._has_parts():
            self._check_shared(step, inputs)
        if are_same:
            self._check_drawn(step, is_alike=all(draws) and len(set(states)) == 1, num=len(found))

    @staticmethod
    def _inputs_of(step: Step) -> dict[str, int]:
        """Name -> its bits, of what stands in the batch."""
        few = list(step.inputs().items())[:_MOST_INPUTS]
        return dict(zip([n for n, _ in few], _numbers([_digest_or_zero(t) for _, t in few]), strict=True))

    def _check_shared(self, step: Step, inputs: dict[str, int]) -> None:
        """A collective. One input may be the same on all ranks where others are not: noise, whose seed is shared."""
        last, self._last = self._last, inputs
        changed = [name not in last or last[name] != number for name, number in inputs.items()]
        found = self._gathered([*inputs.values(), *changed])
        of_ranks = list(zip(*found, strict=True))
        alike = zip(inputs, of_ranks[: len(inputs)], of_ranks[len(inputs) :], strict=True)
        same = [name for name, bits, have_changed in alike if len(set(bits)) == 1 and all(have_changed)]
        tell = [name for name in same if _tells(step.inputs()[name])]
        self._num_shared = {name: self._num_shared.get(name, 0) + 1 for name in tell}
        shared = [name for name in tell if self._num_shared[name] >= _LOOKS]
        if shared:
            is_all = len(same) == len(inputs)
            what = "batch" if is_all else f"{', '.join(shared[:4])} (and not all of the batch)"
            evidence = f"all {len(found)} ranks have had the same {what}, in {self._num_shared[shared[0]]} looks"
            advice = None if is_all else "seed by rank what draws it: torch.manual_seed(seed + rank)"
            where = "batch" if is_all else shared[0]
            self.broken("ranks-share-samples", step, evidence, subject=where, advice=advice)

    def _check_drawn(self, step: Step, *, is_alike: bool, num: int) -> None:
        """A warning: the same noise on all ranks is less noise, the same dropout does little harm."""
        self._num_drawn_alike = self._num_drawn_alike + 1 if is_alike else 0
        if self._num_drawn_alike >= _LOOKS:
            evidence = f"torch's generator is in one state on all {num} ranks, and the step draws from it"
            evidence += f", in {self._num_drawn_alike} looks: noise, times and dropout are the same"
            advice = "call torch.manual_seed(seed + rank) once the model is built"
            where = "random numbers of the step"
            self.broken("ranks-share-samples", step, evidence, subject=where, severity="warning", advice=advice)

    def _name(self, contract: str, step: Step, digests: list[Tensor], evidence: str, advice: str | None = None) -> None:
        """Report it of the parameters whose digests, one of each, differ; a collective, for all ranks know that some
        do. Without digests no parameter is named."""
        found = self._gathered(_numbers(digests)) if digests else []
        differ = [p for p, *of_ranks in zip(self._unsharded().values(), *found, strict=False) if len(set(of_ranks)) > 1]
        if differ:
            self.broken_in(contract, step, differ, evidence, advice=advice)
        else:
            self.broken(contract, step, evidence, subject="parameters", advice=advice)

    def forget(self) -> None:
        self._gradients = None

    def _has_parts(self) -> bool:
        """Whether ranks hold parts of parameters: of a tensor-parallel model all of them must have the same batch. A
        model that is sharded by its optimizer alone is not asked either."""
        return any(is_sharded(p) for p in self.scene.parameters().values())

    def _unsharded(self) -> dict[int, nn.Parameter]:
        return {key: p for key, p in self.scene.parameters().items() if not is_sharded(p)}

    def _gathered(self, mine: list[int]) -> list[list[int]]:
        """Of all ranks, in their order; a collective on the device of the parameters."""
        device = next((p.device for p in self.scene.parameters().values()), torch.device("cpu"))
        numbers = torch.zeros(num_ranks(), len(mine), dtype=torch.int64)
        numbers[rank()] = torch.tensor(mine, dtype=torch.int64)
        numbers = numbers.to(device)
        torch.distributed.all_reduce(numbers)
        found: list[list[int]] = numbers.tolist()
        return found


def _left_out_by(wrapper: DistributedDataParallel) -> list[nn.Parameter]:
    """Parameters of any shape that it does not average, for they were frozen when it was made; none where these are not
    known: others were frozen since, or it is told to leave some out."""
    frozen = [p for p in wrapper.parameters() if not p.requires_grad]
    num_trained = sum(p.requires_grad for p in wrapper.parameters())
    counted = wrapper._get_ddp_logging_data().get("num_parameter_tensors")
    return frozen if counted == num_trained and not wrapper.parameters_to_ignore else []


def _tells(tensor: Tensor) -> bool:
    """Whether samples of their own would show in it. Reads on the host: only where ranks have the same."""
    values = strided(tensor)
    least = _FEW_FLOATS if tensor.is_floating_point() else _FEW_INTEGERS
    if values is None or values.is_sparse or not values.dim() or values.numel() < least:
        return False
    rows = values.detach().reshape(len(values), -1)
    return len(rows) == 1 or bool((rows != rows[:1]).any())


def _digest_or_zero(tensor: Tensor | None) -> Tensor:
    """() int64: of its bits; 0 where there is none."""
    found = None if tensor is None else digest(tensor.detach())
    return torch.zeros((), dtype=torch.int64) if found is None else found


def _numbers(digests: list[Tensor]) -> list[int]:
    """On the host, in their order. One read a device."""
    found = [0] * len(digests)
    for device in {one.device for one in digests}:
        places = [place for place, one in enumerate(digests) if one.device == device]
        for place, number in zip(places, torch.stack([digests[i] for i in places]).tolist(), strict=True):
            found[place] = number
    return found


def _joint(digests: list[Tensor]) -> int:
    """One number for all, that depends on their order. One read a device."""
    return hash(tuple(_numbers(digests)))
