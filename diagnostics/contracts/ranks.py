"""Several processes that train one model: parameters, gradients and batches, compared in the first steps and where a
step is due.

Every rank takes the same collectives in the same steps, of a group that trains one model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, Step, held_by, is_sharded
from diagnostics.modules import walk
from diagnostics.ranks import num_ranks, rank

_LOOKS = 2
_FIRST_STEPS = 4  # an accumulation steps in the last of several


class Ranks(Family):
    """What must be the same on all ranks is, and what must not be is not."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._were_same: bool | None = None  # parameters, at the first look
        self._num_shared = 0
        self._num_steps = 0
        self._gradients: list[Tensor] | None = None
        self._last_batch: int | None = None
        self._is_wrapped = any(isinstance(m, DistributedDataParallel) for one in scene.models for _, m in walk(one))
        self._looks = False

    def begin(self, step: Step) -> None:
        self._looks = (step.is_due or self._num_steps < _FIRST_STEPS) and num_ranks() > 1
        self._num_steps += 1
        self._gradients = None
        if self._looks and self._were_same is None:
            found = self._gathered([_joint([_digest_or_zero(p) for p in self._unsharded().values()])])
            self._were_same = len({one for (one,) in found}) == 1

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if self._looks and self._gradients is None and not has_closure and self.scene.concerns(optimizer):
            held = {id(p) for p in held_by(optimizer)}
            self._gradients = [_digest_or_zero(p.grad if key in held else None) for key, p in self._unsharded().items()]

    def end(self, step: Step) -> None:
        if not self._looks:
            return
        whole, grads = [_digest_or_zero(p) for p in self._unsharded().values()], self._gradients or []
        batch = _joint([_digest_or_zero(one) for one in step.inputs().values()])
        is_new = bool(step.inputs()) and batch != self._last_batch
        self._last_batch = batch
        joint = [_joint(whole), _joint(grads), batch]
        found = self._gathered([*joint, len(whole), self._gradients is not None, is_new, step.is_skipped])
        parameters, gradients, batches, sizes, stepped, changed, skipped = zip(*found, strict=True)
        if any(skipped):
            return
        are_same, can_name = len(set(parameters)) == 1, len(set(sizes)) == 1
        if not are_same and (self._were_same or self._is_wrapped):
            evidence = f"{len(set(parameters))} different states on {len(found)} ranks after the step"
            self._name("ranks-differ", step, whole if can_name else [], evidence)
        if self._were_same and all(stepped) and len(set(gradients)) > 1:
            evidence = f"{len(set(gradients))} different gradients on {len(found)} ranks when the optimizer steps"
            self._name("gradients-not-averaged", step, grads if can_name else [], evidence)
        shared = are_same and all(changed) and len(set(batches)) == 1
        self._num_shared = self._num_shared + 1 if shared else 0
        if self._num_shared >= _LOOKS:
            evidence = f"all {len(found)} ranks have had the same batch, in {self._num_shared} looks"
            self.broken("ranks-share-samples", step, evidence, subject="batch")

    def _name(self, contract: str, step: Step, digests: list[Tensor], evidence: str) -> None:
        """Report it of the parameters whose digests, one of each, differ; a collective, for all ranks know that some
        do. Without digests no parameter is named."""
        found = self._gathered(_numbers(digests)) if digests else []
        differ = [p for p, *of_ranks in zip(self._unsharded().values(), *found, strict=False) if len(set(of_ranks)) > 1]
        if differ:
            self.broken_in(contract, step, differ, evidence)
        else:
            self.broken(contract, step, evidence, subject="parameters")

    def forget(self) -> None:
        self._gradients = None

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
