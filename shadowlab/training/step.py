"""The training step. It exists once: overfit, train, the checks and train-vae all call it.

Legend: B samples of a micro-batch, N samples of this process in the step.

A step is a pure function of (weights, batch, seed, step): noise belongs to a sample's position in the data stream
and t to the step, so the same step can be run again, to resume or to find out what went wrong in it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics import Watch, all_finite
from diagnostics.statistics import ParameterStatistics, gradient_norms, total_norm
from shadowlab.distributed import Processes, local
from shadowlab.encoded_batch import EncodedBatch
from shadowlab.models import loss_where_known, predict, stratified_times
from shadowlab.seeding import generator, normal
from shadowlab.settings import OptimizerConfig
from shadowlab.training.optimizer import learning_rate
from shadowlab.training.trainee import Trainee

_COMPILING_SECONDS = 1800.0  # a compiled block may meet a new shape in any step


@dataclass(frozen=True)
class StepPlace:
    """Where a step stands."""

    step: int
    """0-based optimizer step."""
    first_position: int
    """Samples drawn by all processes before it."""
    global_batch: int
    """Samples of all processes in this step."""


class Learner(Protocol):
    """What the watched step needs of what is trained. A `Trainee` is one."""

    @property
    def model(self) -> nn.Module:
        """What forward and backward run on."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def scaler(self) -> torch.amp.GradScaler | None: ...

    @property
    def processes(self) -> Processes: ...

    @property
    def watch(self) -> Watch: ...

    @property
    def learning_rate_config(self) -> OptimizerConfig:
        """Learning rate and clipping."""

    @property
    def max_steps(self) -> int:
        """Where the learning rate's schedule ends."""

    @property
    def compiles(self) -> bool:
        """Whether a forward may compile."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that train."""

    def update_average(self, parameters: Iterable[Tensor]) -> None:
        """One step of the weight average, if there is one. parameters: those of `parameters()`, of any shape."""


@dataclass(frozen=True)
class Update:
    """Host numbers of one watched step."""

    loss: float
    """Mean over all processes."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    skipped: bool
    """The scaler left weights alone."""
    losses: tuple[float, ...]
    """This process's, as the loss functions gave them, one after the other."""


@dataclass
class StepNotes:
    """What a step has read on the host before it may end in an error; filled by `training_step`."""

    update: Update | None = None
    """None where it did not come that far."""
    gradient_norms: dict[str, Tensor] = field(default_factory=dict)
    """Parameter -> norm of its gradient before clipping, a scalar on its device."""
    times: tuple[float, ...] = ()
    """t of this process's samples."""

    @property
    def sample_losses(self) -> tuple[tuple[float, float], ...]:
        """(t, loss) of this process's samples; empty where the step did not come that far."""
        return () if self.update is None else tuple(zip(self.times, self.update.losses, strict=True))


@dataclass(frozen=True)
class StepOutcome:
    """Host numbers of one finished step."""

    loss: float
    """Mean over all processes."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    skipped: bool
    """The scaler left weights alone."""
    sample_losses: tuple[tuple[float, float], ...]
    """(t, loss) of this process's samples."""


def training_step(
    trainee: Trainee,
    batches: Sequence[EncodedBatch],
    place: StepPlace,
    *,
    parameter_statistics: ParameterStatistics | None = None,
    notes: StepNotes | None = None,
) -> StepOutcome:
    """The watched step of the objective's loss over the micro-batches of one step.

    Args:
        notes: filled, also where the step ends in an error.

    Raises:
        NonFiniteError: as `watched_step`.
    """
    notes = StepNotes() if notes is None else notes
    times = torch.cat([_times(trainee, batch, place) for batch in batches]).tolist()
    notes.times = tuple(times)
    named = [batch.tensors() | {"ids": batch.ids, "positions": batch.positions} for batch in batches]
    update = watched_step(
        trainee,
        _objective_losses(trainee, trainee.model, batches, place),
        place.step,
        batch=named[0] if len(named) == 1 else named,
        parameter_statistics=parameter_statistics,
        notes=notes,
    )
    return StepOutcome(update.loss, update.grad_norm, update.learning_rate, update.skipped, notes.sample_losses)


def watched_step(
    learner: Learner,
    losses: Sequence[Callable[[], Tensor]],
    step: int,
    *,
    batch: Any = None,
    parameter_statistics: ParameterStatistics | None = None,
    notes: StepNotes | None = None,
) -> Update:
    """Forward, backward, finite check, clip, optimizer, average over the micro-batches of one step, under watch.

    The only host read is of (losses, gradient norm, finite flags), together, before the optimizer step.

    Args:
        losses: for each micro-batch a function that computes its losses, (n,) float32, whose mean is minimised. They
            may be called again, and must then compute the same.
        step: 0-based optimizer step.
        batch: named tensors, so that a bad sample can be named.
        notes: filled, also where the step ends in an error.

    Raises:
        NonFiniteError: something is not finite on some rank, or the scaler has skipped too many steps in a row. It
            says where that was born; weights, optimizer and average are unchanged.
    """
    return learner.watch.step(
        lambda: _step(learner, losses, step, parameter_statistics, StepNotes() if notes is None else notes),
        batch=batch,
        step_index=step,
    )


def _step(
    learner: Learner,
    loss_functions: Sequence[Callable[[], Tensor]],
    step: int,
    parameter_statistics: ParameterStatistics | None,
    notes: StepNotes,
) -> Update:
    optimizer, config, processes = learner.optimizer, learner.learning_rate_config, learner.processes
    optimizer.zero_grad(set_to_none=True)
    losses = _accumulate(learner, learner.model, loss_functions)
    if learner.scaler is not None:
        learner.scaler.unscale_(optimizer)
    parameters = learner.parameters()
    norms = gradient_norms(parameters)
    grad_norm = total_norm(norms.values())
    finite_loss = processes.all_true(all_finite([losses]))
    finite_gradients = processes.all_true(torch.isfinite(grad_norm))
    loss = processes.mean(losses.mean())
    flags = [loss.double(), grad_norm, finite_loss.double(), finite_gradients.double()]
    host = torch.cat([torch.stack(flags), losses.double()]).tolist()
    rate = learning_rate(config, step, learner.max_steps)
    overflowed = learner.scaler is not None and not host[3] and bool(host[2])
    update = notes.update = Update(host[0], host[1], rate, skipped=overflowed, losses=tuple(host[4:]))
    notes.gradient_norms = norms

    if learner.scaler is not None and overflowed:
        # float16 gradients overflowed at this scale: the scaler halves it, nothing moves.
        learner.scaler.update()
        return update
    learner.watch.note(loss=host[0] if host[2] else math.nan, grad_norm=host[1] if host[3] else math.inf)

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
    update = notes.update = replace(update, learning_rate=float(optimizer.param_groups[0]["lr"]))
    if learner.scaler is not None:
        learner.scaler.update()
    learner.update_average(parameters.values())
    if parameter_statistics is not None:
        parameter_statistics.after_step()
    return update


def forward_backward(trainee: Trainee, model: nn.Module, batches: Sequence[EncodedBatch], place: StepPlace) -> Tensor:
    """Accumulate gradients of the mean loss over `batches`. Returns the loss of each sample, (N,) float32."""
    return _accumulate(trainee, model, _objective_losses(trainee, model, batches, place))


def _accumulate(learner: Learner, model: nn.Module, loss_functions: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Accumulate gradients of the mean of all losses. Returns these, (N,), without their graphs."""
    losses = []
    patience = _COMPILING_SECONDS if learner.compiles else 0.0
    for number, loss_function in enumerate(loss_functions):
        last = number == len(loss_functions) - 1
        # DDP averages gradients over ranks once, in the last micro-batch.
        # FSDP2 reduces in each: whole gradients would take the memory that it is there to save.
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            learner.processes.at("forward", patience_seconds=patience)
            per_sample = loss_function()
            learner.processes.at("backward", patience_seconds=patience)
            loss = per_sample.mean() / len(loss_functions)
            (loss if learner.scaler is None else learner.scaler.scale(loss)).backward()
        losses.append(per_sample.detach())
    return torch.cat(losses)


def _objective_losses(
    trainee: Trainee, model: nn.Module, batches: Sequence[EncodedBatch], place: StepPlace
) -> list[Callable[[], Tensor]]:
    return [partial(objective_loss, trainee, model, batch, place) for batch in batches]


def objective_loss(trainee: Trainee, model: nn.Module, batch: EncodedBatch, place: StepPlace) -> Tensor:
    """The objective's loss of each sample where its target is known, (B,) float32."""
    device, seed, objective = trainee.device, trainee.seed, trainee.objective
    shape = batch.data.shape[1:]
    noise = torch.stack([normal(shape, seed, "noise", position) for position in batch.positions.tolist()])
    t = _times(trainee, batch, place).to(device, non_blocking=True)
    noise = noise.to(device, non_blocking=True)
    noise = _rectified(trainee, model, batch, noise, t)
    x_t = objective.noised(noise, batch.data, t)
    with trainee.precision.autocast(device):
        predicted = predict(model, x_t, objective.timesteps(t), batch.conditions)
    if batch.valid is not None:
        return loss_where_known(objective, predicted, noise, batch.data, t, batch.valid)
    return objective.loss(predicted, noise, batch.data, t)


@torch.no_grad()
def _rectified(trainee: Trainee, model: nn.Module, batch: EncodedBatch, noise: Tensor, t: Tensor) -> Tensor:
    """The noise (B, 4, h, w) as the objective wants it, for which some ask the model first, without gradients."""
    objective = trainee.objective
    rectified = getattr(objective, "rectified", None)
    if rectified is None:
        return noise

    def predicted_at(noisy: Tensor, times: Tensor) -> Tensor:
        with trainee.precision.autocast(trainee.device):
            return predict(model, noisy, objective.timesteps(times), batch.conditions)

    found: Tensor = rectified(predicted_at, noise, batch.data, t)
    return found


def sample_times(seed: int, positions: Tensor, place: StepPlace, noise_share: float = 0.0) -> Tensor:
    """t of the samples at `positions` (B,) of the data stream, (B,) float32 in [0, 1) on the CPU."""
    offset = torch.rand((), generator=generator(seed, "t", place.step), dtype=torch.float64).item()
    in_step, stride = positions - place.first_position, place.global_batch
    return torch.cat([stratified_times(1, offset, int(p), stride, noise_share) for p in in_step.tolist()])


def _times(trainee: Trainee, batch: EncodedBatch, place: StepPlace) -> Tensor:
    return sample_times(trainee.seed, batch.positions, place, trainee.noise_share)
