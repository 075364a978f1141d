"""What surrounds an update, measured in steps with statistics: averages, gradients left over, frozen weights, the
number of updates, and what the model is given.

Of each tensor up to 16,384 elements are looked at, as `ParameterStatistics` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from diagnostics.statistics import gradient_norms, sampled, total_norm
from shadowlab.distributed import local
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.training.trainee import Trainee


class UpkeepNumbers(TypedDict, total=False):
    """Keys of a record of a training step; see `diagnostics.records.TrainingStep`."""

    ema_distance: float
    ema_moved: float
    gradient_carried: float
    num_updates: int
    frozen_moved: dict[str, float]
    input_std: dict[str, float]
    input_max: dict[str, float]


class Upkeep:
    """Of one trainee. Frozen weights are compared with what they are when this is made.

    upkeep.begin()
    ...the training step...
    record |= upkeep.end(batches)
    """

    def __init__(self, trainee: Trainee) -> None:
        self._trainee = trainee
        named = trainee.unet.named_parameters()
        self._frozen = {name: sampled(local(p.detach())).clone() for name, p in named if not p.requires_grad}
        self._averages: list[Tensor] = []
        self._carried: Tensor | None = None
        self._num_updates = 0
        self._handles: list[Any] = []

    def begin(self) -> None:
        """A step with statistics begins."""
        trainee = self._trainee
        self.drop()
        self._carried, self._num_updates = None, 0
        if trainee.ema is not None:
            self._averages = [sampled(average).clone() for average in trainee.ema.shadow_params]
        self._handles = [
            trainee.unet.register_forward_pre_hook(self._before_forward),
            trainee.optimizer.register_step_post_hook(self._after_update),
        ]

    def end(self, batches: Sequence[EncodedBatch], *, skipped: bool) -> UpkeepNumbers:
        """The numbers of the step, whose micro-batches of this process are `batches`; a read on the host."""
        self.drop()
        found: UpkeepNumbers = {"num_updates": self._num_updates}
        if self._carried is not None:
            found["gradient_carried"] = float(self._carried)
        if self._averages and not skipped:
            found |= self._followed()
        self._averages = []
        found["frozen_moved"] = self._moved()
        inputs = {name: [batch.tensors()[name] for batch in batches] for name in batches[0].tensors()}
        flat = {name: torch.cat([one.detach().float().flatten() for one in own]) for name, own in inputs.items()}
        found["input_std"] = _host({name: one.std(correction=0) for name, one in flat.items()})
        found["input_max"] = _host({name: one.abs().amax() for name, one in flat.items()})
        return found

    def drop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        if self._carried is None:  # the step's first; every process comes here
            norms = gradient_norms(self._trainee.parameters())
            self._carried = total_norm(norms.values())

    def _after_update(self, *_: Any) -> None:
        self._num_updates += 1

    def _followed(self) -> UpkeepNumbers:
        """How far the averages are from the weights, and how far they moved of what their decay asks for."""
        trainee = self._trainee
        assert trainee.ema is not None
        weights = torch.cat([sampled(local(p.detach())).float() for p in trainee.parameters().values()])
        before = torch.cat([average.float() for average in self._averages])
        after = torch.cat([sampled(average).float() for average in trainee.ema.shadow_params])
        decay = trainee.ema.cur_decay_value or 0.0
        own = weights.norm(), (weights - after).norm(), (weights - before).norm(), (after - before).norm()
        norm, distance, way, moved = torch.stack(own).tolist()
        found: UpkeepNumbers = {"ema_distance": distance / norm if norm else 0.0}
        asked = (1.0 - decay) * way
        if asked > 0:
            found["ema_moved"] = moved / asked
        return found

    def _moved(self) -> dict[str, float]:
        """Frozen parameters that are not what they were, and by how much of their norm."""
        if not self._frozen:
            return {}
        named = dict(self._trainee.unet.named_parameters())
        now = {name: sampled(local(named[name].detach())) for name in self._frozen}
        changes = {name: (now[name].float() - own.float()).norm() for name, own in self._frozen.items()}
        norms = {name: own.float().norm() for name, own in self._frozen.items()}
        changed, norm = _host(changes), _host(norms)
        return {name: change / (norm[name] or 1.0) for name, change in changed.items() if change != 0}


def _host(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars of one device as numbers; one transfer."""
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))
