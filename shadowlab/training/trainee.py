"""What is trained: the UNet with its optimizer, EMA, precision and schedule."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diagnostics.watching import Watch
from shadowlab.distributed import Processes, local
from shadowlab.models import POLICIES, Precision, load_unet
from shadowlab.settings import Config, OptimizerConfig
from shadowlab.tasks import ModelInputs
from shadowlab.training.compilation import compile_blocks


@dataclass
class Trainee:
    """One model in training.

    `model` is what forward and backward run on (the UNet itself, or DDP around it); `unet` is always the UNet, and
    under FSDP2 its parameters, their gradients and states are DTensors. The EMA holds each process's part of them.
    """

    unet: UNet2DConditionModel
    model: nn.Module
    optimizer: torch.optim.AdamW
    ema: EMAModel | None
    scaler: torch.amp.GradScaler | None
    precision: Precision
    processes: Processes
    learning_rate_config: OptimizerConfig
    max_steps: int
    seed: int
    watch: Watch
    compiles: bool = False

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def update_average(self, parameters: Iterable[Tensor]) -> None:
        """One step of the EMA, with foreach operators. parameters: those of `parameters()`, walked once a step."""
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


def build_unet(config: Config, task: ModelInputs, device: torch.device) -> UNet2DConditionModel:
    """The UNet as configured: weights, surgery, precision, device."""
    POLICIES[config.precision].apply_to_backend(device)
    unet = load_unet(
        config.model.weights,
        config.model.architecture,
        in_channels=task.in_channels,
        widening=task.widening,
        embedding_dim=task.embedding_dim,
        seed=config.seed,
    )
    return prepare_unet(unet, config, device)


def prepare_unet(unet: UNet2DConditionModel, config: Config, device: torch.device) -> UNet2DConditionModel:
    """Checkpointing, precision, layout in memory and device of a UNet whose surgery is done, in place."""
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    POLICIES[config.precision].prepare(unet)
    layout = torch.channels_last if config.model.channels_last else torch.preserve_format
    return unet.to(device, memory_format=layout)


def build_trainee(
    config: Config,
    unet: UNet2DConditionModel,
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
    optimizer = adamw(parameters, optimizer_config)
    return Trainee(
        unet=unet,
        model=model,
        optimizer=optimizer,
        ema=ema,
        scaler=torch.amp.GradScaler(processes.device.type) if precision.scales_gradients else None,
        precision=precision,
        processes=processes,
        learning_rate_config=optimizer_config,
        max_steps=max_steps,
        seed=config.seed,
        watch=Watch(
            unet,
            optimizer,
            statistics_every=config.diagnostics.statistics_every,
            incidents=None,
            safe_averages=ema.shadow_params if ema is not None else (),  # float32, a decay below 1
            max_consecutive_skips=config.train.max_consecutive_skips,
        ),
        compiles=config.model.compile,
    )


def adamw(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over parameters of any shape; fused where all are float32, if the configuration leaves it open."""
    parameters = list(parameters)
    fused = config.fused
    if fused is None:
        fused = all(parameter.dtype is torch.float32 for parameter in parameters)
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused or None,  # None is torch's own choice, foreach on a GPU; False would be the slow loop
    )


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Learning rate of the 0-based optimizer step: a pure function, so there is nothing to save or restore.

    Linear warm-up over `warmup_steps` (the first step already moves), then constant, or a half cosine to zero.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
