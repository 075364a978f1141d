"""The memory plan: what training as configured needs on one GPU, item by item, without allocating the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers import UNet2DConditionModel
from torch.distributed.device_mesh import init_device_mesh

from diagnostics.watching import OptimizerState
from shadowlab.distributed import SingleProcess, shard
from shadowlab.errors import UserError
from shadowlab.models import architecture_of, unwritten_unet, unwritten_vae
from shadowlab.planning.kernels import cpu_workspace, cuda_attention
from shadowlab.planning.live_bytes import ACTIVATIONS, EMA, GRADIENTS, MOMENTS, VAE, WEIGHTS, LiveBytes, fake_tensors
from shadowlab.planning.rehearsal import ALL_MOMENTS, EMA_STEP, FORWARD, OPTIMIZER, VALIDATION, Rehearsal
from shadowlab.settings import Config
from shadowlab.tasks import Task, open_task
from shadowlab.training import Trainee, build_trainee, prepare_unet

Strategy = Literal["single", "ddp", "fsdp2"]
DeviceKind = Literal["cpu", "cuda"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
GB = 10**9
Peaks = dict[str, dict[str, int]]  # moment -> item -> bytes

_WORKED_ON = 2  # micro-batches of a step that are traced
_CONTEXT_BYTES = GB  # of CUDA, cuBLAS and cuDNN: kernels, handles, workspaces
_NCCL_BYTES = GB  # channel buffers of several processes
_FRAGMENTATION = 0.05  # of the peak: what the caching allocator holds and cannot use


@dataclass(frozen=True)
class Peak:
    """The most that one moment of a round needs."""

    moment: str
    items: dict[str, int]
    """Name -> bytes."""

    @property
    def total(self) -> int:
        return sum(self.items.values())


@dataclass(frozen=True)
class StrategyPlan:
    """One strategy on one of the GPUs."""

    strategy: Strategy
    peaks: tuple[Peak, ...]
    assumed: dict[str, int]
    """Name -> bytes that no trace shows; empty on a CPU."""

    def peak(self, moment: str) -> Peak:
        return next(peak for peak in self.peaks if peak.moment == moment)

    def most(self, item: str) -> int:
        """The most of one item at any moment's peak."""
        return max(peak.items.get(item, 0) for peak in self.peaks)

    @property
    def highest(self) -> Peak:
        return max(self.peaks, key=lambda peak: peak.total)

    @property
    def needed(self) -> int:
        return self.highest.total + sum(self.assumed.values())


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs in memory, by strategy."""

    config: Config
    device: DeviceKind
    processes: int
    """That ddp and fsdp2 run in."""
    num_parameters: int
    """Of the UNet."""
    num_trained: int
    """Of these, those that train: frozen ones have no gradient and no state."""
    strategies: tuple[StrategyPlan, ...]


def plan_memory(
    config: Config,
    *,
    device: DeviceKind = "cuda",
    processes: int = 4,
    strategies: Sequence[Strategy] = STRATEGIES,
) -> MemoryPlan:
    """Trace a round of training on fake tensors.

    Args:
        device: where it would run. processes: GPUs, for ddp and fsdp2.

    Raises:
        UserError: a folder of weights has no readable config.json.
    """
    open_task(config)  # imported while tensors are real: a constant that its modules make stays what it was made as
    whole = _trace(config, device)
    plans: dict[Strategy, Peaks] = {"single": whole.peaks}
    # DDP's buckets are the gradients, and they stay.
    gradients = max(items.get(GRADIENTS, 0) for items in whole.peaks.values())
    plans["ddp"] = {moment: items | {GRADIENTS: gradients} for moment, items in whole.peaks_but_gradients.items()}
    if "fsdp2" in strategies:
        plans["fsdp2"] = _trace_sharded(config, device, processes, whole.peaks)
    return MemoryPlan(
        config,
        device,
        processes,
        whole.num_parameters,
        whole.num_trained,
        tuple(_strategy(name, plans[name], device) for name in strategies),
    )


def _strategy(name: Strategy, peaks: dict[str, dict[str, int]], device: str) -> StrategyPlan:
    found = tuple(Peak(moment, {item: size for item, size in peaks[moment].items() if size}) for moment in ALL_MOMENTS)
    assumed = {}
    if device == "cuda":
        highest = max(peak.total for peak in found)
        assumed["CUDA, workspaces"] = _CONTEXT_BYTES
        if name != "single":
            assumed["NCCL buffers"] = _NCCL_BYTES
        assumed["fragmentation"] = round(_FRAGMENTATION * highest)
    return StrategyPlan(name, found, assumed)


@dataclass(frozen=True)
class _Trace:
    peaks: Peaks
    peaks_but_gradients: Peaks
    num_parameters: int
    num_trained: int


def _trace(config: Config, device: str) -> _Trace:
    """A whole round in one process."""
    with _no_memory(device) as live:
        task, unet = _fake_models(config, live)
        live.label(WEIGHTS, list(unet.parameters()))
        trainee = _trainee(config, task, unet, config.train.ema_decay)
        if trainee.ema is not None:
            live.label(EMA, trainee.ema.shadow_params)
        for group in trainee.optimizer.param_groups if config.optimizer.name == "adamw" else ():
            group["foreach"] = device == "cuda" and not group["fused"]  # torch's default for real tensors there
        copies: list[OptimizerState] = []

        def enter(moment: str) -> None:
            live.enter(moment)
            if moment == OPTIMIZER and trainee.watch.undo_reason is not None:  # the watch copies all that may change
                averages = trainee.ema.shadow_params if trainee.ema is not None else []
                copies.append(OptimizerState([trainee.optimizer], trainee.parameters().values(), averages))
            elif moment == VALIDATION:
                copies.clear()

        rehearsal = Rehearsal(config, trainee, task, enter, live.on_host if device == "cuda" else _nowhere, _WORKED_ON)
        rehearsal.make_states()
        live.label(GRADIENTS, [p.grad for p in trainee.parameters().values()])
        live.label(MOMENTS, list(trainee.optimizer.state.values()))
        _label_new_gradients(unet, live)
        rehearsal.run()
        num_parameters = sum(p.numel() for p in unet.parameters())
        num_trained = sum(p.numel() for p in trainee.parameters().values())
    return _Trace(live.peaks, live.peaks_but_gradients, num_parameters, num_trained)


def _trace_sharded(config: Config, device: str, processes: int, whole: Peaks) -> Peaks:
    """A round of one of several processes that share everything but activations.

    Forward and backward run under FSDP2 itself. The optimizer and the EMA do on shards what they did on the whole.
    """
    with _mesh(processes) as mesh, _no_memory(device) as live:
        task, unet = _fake_models(config, live)
        shard(unet, mesh)
        live.label(WEIGHTS, list(unet.parameters()))
        held = live.live[WEIGHTS]
        share = held / whole[OPTIMIZER][WEIGHTS]

        of_last_step = [held]

        def enter(moment: str) -> None:
            if moment == FORWARD and of_last_step:
                live.add(GRADIENTS, -of_last_step.pop())  # zero_grad
            live.enter(moment)

        trainee = _trainee(config, task, unet, None)
        _label_new_gradients(unet, live)
        live.add(GRADIENTS, held)
        for name in (MOMENTS, EMA):
            live.add(name, round(share * whole[OPTIMIZER].get(name, 0)))
        rehearsal = Rehearsal(config, trainee, task, enter, live.on_host if device == "cuda" else _nowhere, _WORKED_ON)
        rehearsal.forward_and_backward()
        live.enter(VALIDATION)
        live.add(ACTIVATIONS, held if config.train.ema_decay is not None else 0)  # set aside while the EMA is judged
        rehearsal.validate()
    updates = {
        moment: {name: size if name == VAE else round(share * size) for name, size in whole[moment].items()}
        for moment in (OPTIMIZER, EMA_STEP)
    }
    return {moment: updates.get(moment, live.peaks.get(moment, {})) for moment in ALL_MOMENTS}


@contextmanager
def _no_memory(device: str) -> Iterator[LiveBytes]:
    """Fake tensors, and what the kernels of that device hold."""
    if device == "cuda":
        with fake_tensors() as live, cuda_attention():
            yield live
    else:
        with fake_tensors(cpu_workspace) as live:
            yield live


def _fake_models(config: Config, live: LiveBytes) -> tuple[Task[Any], UNet2DConditionModel]:
    task = open_task(config, vae=unwritten_vae(config.model.vae_source))
    live.label(VAE, list(task.vae.autoencoder.state_dict().values()))
    unet = unwritten_unet(architecture_of(config.model.weights, config.model.architecture), task.spec)
    return task, prepare_unet(unet, config, task.spec, None)


def _trainee(config: Config, task: Task[Any], unet: UNet2DConditionModel, ema_decay: float | None) -> Trainee:
    alone = SingleProcess(torch.device("cpu"))  # stands for the GPU, too: fake tensors have no memory on either
    settings = config.train
    trainee = build_trainee(
        config, unet, task.objective, alone, config.optimizer, settings.max_steps, ema_decay=ema_decay
    )
    trainee.watch.detach()  # what it reads of a first step takes its time on fake tensors
    return trainee


def _label_new_gradients(unet: UNet2DConditionModel, live: LiveBytes) -> None:
    for parameter in (one for one in unet.parameters() if one.requires_grad):
        parameter.register_post_accumulate_grad_hook(lambda p: live.label(GRADIENTS, p.grad))


def _nowhere(tensors: object) -> None:
    """On a CPU all memory is the host's."""


@contextmanager
def _mesh(count: int) -> Iterator[torch.distributed.device_mesh.DeviceMesh]:
    """A mesh of which this is one process and the others do not exist; its collectives move nothing."""
    if torch.distributed.is_initialized():
        raise UserError("plan runs in one process; start it without torchrun")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()
