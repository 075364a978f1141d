"""Several processes that train one model: parameters, gradients and batches, compared where a step is due.

Every rank takes the same collective in the same steps: those that are due, of a group that trains one model.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.motion import digest
from diagnostics.contracts.scene import Scene, Step, held_by, is_sharded
from diagnostics.modules import walk
from diagnostics.ranks import num_ranks, rank

_LOOKS = 2


class Ranks(Family):
    """What must be the same on all ranks is, and what must not be is not."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._were_same: bool | None = None  # parameters, at the first look
        self._num_shared = 0
        self._gradients: int | None = None
        self._last_batch: int | None = None
        self._is_wrapped = any(isinstance(m, DistributedDataParallel) for one in scene.models for _, m in walk(one))
        self._looks = False

    def begin(self, step: Step) -> None:
        self._looks = step.is_due and num_ranks() > 1
        self._gradients = None
        if self._looks and self._were_same is None:
            found = self._gathered([_joint(self._whole())])
            self._were_same = len({one for (one,) in found}) == 1

    def before_optimizer(self, step: Step, optimizer: Any, *, has_closure: bool) -> None:
        if self._looks and self._gradients is None and not has_closure and self.scene.concerns(optimizer):
            grads = [p.grad for p in held_by(optimizer) if p.grad is not None and not is_sharded(p)]
            self._gradients = _joint(grads)

    def end(self, step: Step) -> None:
        if not self._looks:
            return
        batch = _joint(list(step.inputs().values()))
        has_gradients, has_batch = self._gradients is not None, bool(step.inputs())
        is_new = has_batch and batch != self._last_batch
        self._last_batch = batch
        mine = [_joint(self._whole()), self._gradients or 0, batch, has_gradients, is_new, step.is_skipped]
        found = self._gathered(mine)
        parameters, gradients, batches, stepped, changed, skipped = zip(*found, strict=True)
        if any(skipped):
            return
        are_same = len(set(parameters)) == 1
        if not are_same and (self._were_same or self._is_wrapped):
            evidence = f"{len(set(parameters))} different states on {len(found)} ranks after the step"
            self.broken("ranks-differ", step, evidence, subject="parameters")
        if self._were_same and all(stepped) and len(set(gradients)) > 1:
            evidence = f"{len(set(gradients))} different gradients on {len(found)} ranks when the optimizer steps"
            self.broken("gradients-not-averaged", step, evidence, subject="gradients")
        shared = are_same and all(changed) and len(set(batches)) == 1
        self._num_shared = self._num_shared + 1 if shared else 0
        if self._num_shared >= _LOOKS:
            evidence = f"all {len(found)} ranks have had the same batch, in {self._num_shared} looks"
            self.broken("ranks-share-samples", step, evidence, subject="batch")

    def forget(self) -> None:
        self._gradients = None

    def _whole(self) -> list[Tensor]:
        return [p.detach() for p in self.scene.parameters().values() if not is_sharded(p)]

    def _gathered(self, mine: list[int]) -> list[list[int]]:
        """Of all ranks, in their order; a collective on the device of the parameters."""
        device = next((p.device for p in self.scene.parameters().values()), torch.device("cpu"))
        numbers = torch.zeros(num_ranks(), len(mine), dtype=torch.int64)
        numbers[rank()] = torch.tensor(mine, dtype=torch.int64)
        numbers = numbers.to(device)
        torch.distributed.all_reduce(numbers)
        found: list[list[int]] = numbers.tolist()
        return found


def _joint(tensors: list[Tensor]) -> int:
    """One number for the bits of all, that depends on their order; 0 for none. One read on the host a device."""
    digests = [one for tensor in tensors if (one := digest(tensor)) is not None]
    by_device: dict[torch.device, list[Tensor]] = {}
    for one in digests:
        by_device.setdefault(one.device, []).append(one)
    return hash(tuple(number for found in by_device.values() for number in torch.stack(found).tolist()))
