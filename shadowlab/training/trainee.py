"""What is trained: the UNet with its optimizer, EMA, precision and schedule."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diagnostics.watching import Watch
from shadowlab.distributed import Processes, local
from shadowlab.interruption import signals
from shadowlab.models import POLICIES, ModelSpec, Objective, Precision, freeze, load_unet
from shadowlab.settings import Config, OptimizerConfig
from shadowlab.training.compilation import compile_blocks
from shadowlab.training.optimizer import build_optimizer


@dataclass
class Trainee:
    """One model in training."""

    unet: UNet2DConditionModel
    """Always the UNet itself; under FSDP2 its parameters, their gradients and states are DTensors."""
    model: nn.Module
    """What forward and backward run on: the UNet, or DDP around it."""
    objective: Objective
    optimizer: torch.optim.Optimizer
    """Of the parameters that train; frozen ones have no state."""
    ema: EMAModel | None
    """Of the parameters that train, each process's part of them."""
    scaler: torch.amp.GradScaler | None
    precision: Precision
    processes: Processes
    learning_rate_config: OptimizerConfig
    max_steps: int
    seed: int
    watch: Watch
    noise_share: float = 0.0
    """As `train.noise_share`."""
    compiles: bool = False

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that train."""
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def update_average(self, parameters: Iterable[Tensor]) -> None:
        """One step of the EMA, with foreach operators. parameters: those of `parameters()`, of any shape, walked
        once a step."""
        if self.ema is not None:
            self.ema.step([local(parameter) for parameter in parameters])

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the UNet holds the EMA weights where there are any; afterwards its own again, bit for bit."""
        if self.ema is None or self.ema.optimization_step == 0:
            yield
            return
        parameters = [local(parameter).detach() for parameter in self.parameters().values()]
        own = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, self.ema.shadow_params)
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, own)


def build_unet(
    config: Config, spec: ModelSpec, device: torch.device, *, downloads: bool = True
) -> UNet2DConditionModel:
    """The UNet as configured and specified: weights, surgery, precision, device, what trains.

    Args:
        downloads: whether weights that a hub id names may be fetched.
    """
    POLICIES[config.precision].apply_to_backend(device)
    unet = load_unet(config.model.weights, config.model.architecture, spec, seed=config.seed, downloads=downloads)
    signals.stop_if_asked()
    return prepare_unet(unet, config, spec, device)


def prepare_unet(
    unet: UNet2DConditionModel, config: Config, spec: ModelSpec, device: torch.device | None
) -> UNet2DConditionModel:
    """Frozen parameters, checkpointing, precision, layout in memory and device of a UNet whose surgery is done, in
    place. device: None for fake tensors, which stay where and as they are."""
    freeze(unet, spec.trainable if config.train.trainable is None else config.train.trainable)
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    POLICIES[config.precision].prepare(unet)
    if device is None:
        return unet
    layout = torch.channels_last if config.model.channels_last else torch.preserve_format
    return unet.to(device, memory_format=layout)


def build_trainee(
    config: Config,
    unet: UNet2DConditionModel,
    objective: Objective,
    processes: Processes,
    optimizer_config: OptimizerConfig,
    max_steps: int,
    *,
    ema_decay: float | None,
) -> Trainee:
    """Optimizer, EMA and scaler around a finished UNet. The UNet must not gain or lose parameters afterwards."""
    if config.model.compile:
        compile_blocks(unet)
    model = processes.wrap(unet)  # before the optimizer: sharding replaces the parameters
    parameters = [p for p in unet.parameters() if p.requires_grad]
    precision = POLICIES[config.precision]
    ema = None
    if ema_decay is not None:
        ema = EMAModel([local(parameter) for parameter in parameters], decay=ema_decay, foreach=True)
        ema.to(dtype=torch.float32)
    optimizer = build_optimizer(parameters, optimizer_config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "eps ")  # a check of its own, before the first step
        watch = Watch(
            unet,
            optimizer,
            statistics_every=config.diagnostics.statistics_every,
            incidents=None,
            safe_averages=ema.shadow_params if ema is not None else (),  # float32, a decay below 1
            max_consecutive_skips=config.train.max_consecutive_skips,
        )
    return Trainee(
        unet=unet,
        model=model,
        objective=objective,
        optimizer=optimizer,
        ema=ema,
        scaler=torch.amp.GradScaler(processes.device.type) if precision.scales_gradients else None,
        precision=precision,
        processes=processes,
        learning_rate_config=optimizer_config,
        max_steps=max_steps,
        seed=config.seed,
        watch=watch,
        noise_share=config.train.noise_share,
        compiles=config.model.compile,
    )
