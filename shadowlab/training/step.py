"""The training step. It exists once; overfit, train and the checks all call it.

Legend: B samples of a micro-batch, N samples of this process in the step.

A step is a pure function of (weights, batch, seed, step): noise belongs to a sample's position in the data stream
and t to the step, so the same step can be run again, to resume or to find out what went wrong in it.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics import all_finite
from diagnostics.statistics import ParameterStatistics, gradient_norms, total_norm
from shadowlab.distributed import local
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.models import predict, stratified_times
from shadowlab.seeding import generator, normal
from shadowlab.training.optimizer import learning_rate
from shadowlab.training.trainee import Trainee

_COMPILING_SECONDS = 1800.0  # a compiled block may meet a new shape in any step


@dataclass(frozen=True)
class StepPlace:
    """Where a step stands.

    step: 0-based optimizer step. first_position: samples drawn by all processes before it.
    global_batch: samples of all processes in this step.
    """

    step: int
    first_position: int
    global_batch: int


@dataclass(frozen=True)
class StepOutcome:
    """Host numbers of one finished step. `grad_norm` is before clipping. `skipped`: the scaler left weights alone.
    sample_losses: (t, loss) of this process's samples."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    sample_losses: tuple[tuple[float, float], ...]


def training_step(
    trainee: Trainee,
    batches: Sequence[EncodedBatch],
    place: StepPlace,
    *,
    parameter_statistics: ParameterStatistics | None = None,
) -> StepOutcome:
    """Forward, backward, finite check, clip, optimizer, EMA over the micro-batches of one step, under watch.

    The only host read is of (loss, gradient norm, finite flags), together, before the optimizer step.

    Raises:
        NonFiniteError: something is not finite on some rank, or the scaler has skipped too many steps in a row. It
            says where that was born; weights, optimizer and EMA are unchanged.
    """
    named = [batch.tensors() | {"ids": batch.ids, "positions": batch.positions} for batch in batches]
    return trainee.watch.step(
        lambda: _step(trainee, batches, place, parameter_statistics),
        batch=named[0] if len(named) == 1 else named,
        step_index=place.step,
    )


def _step(
    trainee: Trainee,
    batches: Sequence[EncodedBatch],
    place: StepPlace,
    parameter_statistics: ParameterStatistics | None,
) -> StepOutcome:
    optimizer, config, processes = trainee.optimizer, trainee.learning_rate_config, trainee.processes
    optimizer.zero_grad(set_to_none=True)
    losses = forward_backward(trainee, trainee.model, batches, place)
    if trainee.scaler is not None:
        trainee.scaler.unscale_(optimizer)
    parameters = trainee.parameters()
    norms = gradient_norms(parameters)
    grad_norm = total_norm(norms.values())
    finite_loss = processes.all_true(all_finite([losses]))
    finite_gradients = processes.all_true(torch.isfinite(grad_norm))
    loss = processes.mean(losses.mean())
    flags = [loss.double(), grad_norm, finite_loss.double(), finite_gradients.double()]
    host = torch.cat([torch.stack(flags), losses.double()]).tolist()
    times = torch.cat([sample_times(trainee.seed, batch.positions, place) for batch in batches]).tolist()
    sample_losses = tuple(zip(times, host[4:], strict=True))
    rate = learning_rate(config, place.step, trainee.max_steps)

    if not host[3] and host[2] and trainee.scaler is not None:
        # float16 gradients overflowed at this scale: the scaler halves it, nothing moves.
        trainee.scaler.update()
        return StepOutcome(host[0], host[1], rate, skipped=True, sample_losses=sample_losses)
    trainee.watch.note(loss=host[0] if host[2] else math.nan, grad_norm=host[1] if host[3] else math.inf)

    if parameter_statistics is not None:
        parameter_statistics.before_step(norms)
    if config.max_grad_norm is not None:
        # Like clip_grad_norm_, but after the finite check: it would turn one Inf into NaN everywhere.
        scale = (config.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0).float()
        torch._foreach_mul_([local(p.grad) for p in parameters.values() if p.grad is not None], scale)
    for group in optimizer.param_groups:
        group["lr"] = rate
    processes.at("optimizer")
    optimizer.step()  # not scaler.step, which reads on the host what has been read above
    if trainee.scaler is not None:
        trainee.scaler.update()
    trainee.update_average(parameters.values())
    if parameter_statistics is not None:
        parameter_statistics.after_step()
    return StepOutcome(host[0], host[1], rate, skipped=False, sample_losses=sample_losses)


def forward_backward(trainee: Trainee, model: nn.Module, batches: Sequence[EncodedBatch], place: StepPlace) -> Tensor:
    """Accumulate gradients of the mean loss over `batches`. Returns the loss of each sample, (N,) float32."""
    losses = []
    patience = _COMPILING_SECONDS if trainee.compiles else 0.0
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        # DDP averages gradients over ranks once, in the last micro-batch.
        # FSDP2 reduces in each: whole gradients would take the memory that it is there to save.
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            trainee.processes.at("forward", patience_seconds=patience)
            per_sample = objective_loss(trainee, model, batch, place)
            trainee.processes.at("backward", patience_seconds=patience)
            loss = per_sample.mean() / len(batches)
            (loss if trainee.scaler is None else trainee.scaler.scale(loss)).backward()
        losses.append(per_sample.detach())
    return torch.cat(losses)


def objective_loss(trainee: Trainee, model: nn.Module, batch: EncodedBatch, place: StepPlace) -> Tensor:
    """The objective's loss of each sample, (B,) float32."""
    device, seed, objective = trainee.device, trainee.seed, trainee.objective
    shape = batch.data.shape[1:]
    noise = torch.stack([normal(shape, seed, "noise", position) for position in batch.positions.tolist()])
    t = sample_times(seed, batch.positions, place).to(device, non_blocking=True)
    noise = noise.to(device, non_blocking=True)
    x_t = objective.noised(noise, batch.data, t)
    with trainee.precision.autocast(device):
        predicted = predict(model, x_t, objective.timesteps(t), batch.conditions)
    return objective.loss(predicted, noise, batch.data, t)


def sample_times(seed: int, positions: Tensor, place: StepPlace) -> Tensor:
    """t of the samples at `positions` (B,) of the data stream, (B,) float32 in [0, 1) on the CPU."""
    offset = torch.rand((), generator=generator(seed, "t", place.step), dtype=torch.float64).item()
    in_step = positions - place.first_position
    return torch.cat([stratified_times(1, offset, int(p), place.global_batch) for p in in_step.tolist()])
