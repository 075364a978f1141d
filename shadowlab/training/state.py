"""What a trainee's state is: parameters, averages, the optimizer's, and a few numbers."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diagnostics import all_finite
from shadowlab.distributed import Processes, is_sharded, local, whole
from shadowlab.errors import UserError
from shadowlab.training.optimizer_state import parts_of_optimizer, write_optimizer
from shadowlab.training.trainee import Trainee


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds. Tensors are whole, in the dtype they are trained in, on any device."""

    weights: dict[str, Tensor]
    """Of every parameter, frozen ones too."""
    averages: dict[str, Tensor] | None
    """Of every parameter: EMA, float32; a frozen one's weight as it is. None without an EMA."""
    optimizer: dict[str, Tensor]
    optimizer_document: dict[str, Any] | None
    """optimizer.json; None where the names of the tensors say all."""
    unet_config: dict[str, Any]
    """config.json of diffusers."""
    numbers: dict[str, Any]
    """state.json."""

    def num_bytes(self) -> int:
        tensors = [*self.weights.values(), *(self.averages or {}).values(), *self.optimizer.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def first_bad(trainee: Trainee) -> str | None:
    """What of this process's state is not finite, in words; None where all is.

    Of Python's numbers only nan is bad: inf is a usual start of a smallest value.
    """
    for kind, tensors in state_by_kind(trainee).items():
        parts = {name: local(tensor) for name, tensor in tensors.items()}
        if not bool(all_finite(parts.values())):
            return f"{kind} {next(name for name, part in parts.items() if not bool(all_finite([part])))}"
    floats = parts_of_optimizer(trainee.optimizer, dict(trainee.unet.named_parameters()))[1]
    bad = [name for name, value in floats.items() if math.isnan(value)]
    return f"optimizer state {bad[0]}" if bad else None


def state_by_kind(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    """Kind -> name -> tensor as this process holds it, sharing its memory; states made of tensors by their parts."""
    named = dict(trainee.unet.named_parameters())
    tensors: dict[str, dict[str, Tensor]] = {"parameter": {**named}}
    if trainee.ema is not None:
        tensors["EMA of"] = _averages(trainee)
    tensors["optimizer state"] = parts_of_optimizer(trainee.optimizer, named)[0]
    return tensors


def training_state(trainee: Trainee, *, step: int, position: int, identity: dict[str, Any]) -> TrainingState:
    """The state as it is written; where it is sharded a collective, and whole on the first process alone.

    Raises:
        UserError: the optimizer keeps something that a checkpoint cannot hold.
    """
    named = dict(trainee.unet.named_parameters())
    optimizer = write_optimizer(trainee.optimizer, named)
    numbers = {
        "step": step,
        "position": position,
        "seed": trainee.seed,
        "identity": identity,
        "processes": trainee.processes.count,
        "strategy": trainee.processes.strategy,
        "ema_updates": trainee.ema.optimization_step if trainee.ema else None,
        "scaler": trainee.scaler.state_dict() if trainee.scaler else None,
        "skips": {"in_a_row": trainee.watch.skips_in_a_row, "total": trainee.watch.num_skipped},
    }
    weights = _gathered(trainee, named)
    averages = None
    if trainee.ema is not None:
        averages = weights | _gathered(trainee, _averages(trainee), named)
    return TrainingState(
        weights=weights,
        averages=averages,
        optimizer=_gathered_optimizer(trainee, optimizer.tensors),
        optimizer_document=optimizer.document,
        # Sharding gives the class another name.
        unet_config=json.loads(trainee.unet.to_json_string()) | {"_class_name": "UNet2DConditionModel"},
        numbers=numbers,
    )


def _averages(trainee: Trainee) -> dict[str, Tensor]:
    """Of the parameters that are trained, as this process holds them."""
    assert trainee.ema is not None
    return dict(zip(trainee.parameters(), trainee.ema.shadow_params, strict=True))


def _gathered(
    trainee: Trainee, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter] | None = None
) -> dict[str, Tensor]:
    """Whole tensors on the first process, one after the other to its CPU where they are sharded; else as they are.

    Args:
        parameters: those that local parts in `tensors` belong to.
    """
    if not is_sharded(trainee.unet):
        return {name: tensor.detach() for name, tensor in tensors.items()}
    found = {}
    for name, tensor in tensors.items():
        one = whole(tensor.detach(), like=tensor if parameters is None else parameters[name])
        if trainee.processes.is_main:
            found[name] = one.cpu()
    return found


def _gathered_optimizer(trainee: Trainee, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same of an optimizer's tensors. One that is not a DTensor must be the same in all processes."""
    if not is_sharded(trainee.unet):
        return tensors
    _require_same(trainee.processes, {name: t for name, t in tensors.items() if not isinstance(t, DTensor)})
    return _gathered(trainee, tensors)


def _require_same(processes: Processes, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError, in every process, where they are not the same tensors everywhere: which is whole, none knows."""
    digests = {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in tensors.items()}
    for other in processes.gather([digests]):
        differing = [name for name in digests | other if digests.get(name) != other.get(name)]
        if differing:
            error = UserError(
                f"optimizer state {differing[0]} is another in each process and no shard of its parameter, so that it "
                "cannot be saved whole; use distributed.strategy=ddp with this optimizer"
            )
            error.shared = True
            raise error


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
