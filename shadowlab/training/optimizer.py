"""AdamW as configured, in 32 or in 8 bits, and its learning rate."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from shadowlab.settings import OptimizerConfig
from shadowlab.training.eight_bit import adamw8bit


def build_optimizer(parameters: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The one that `config` names, over parameters of any shape.

    Raises:
        MissingDependencyError: it is bitsandbytes', which is absent.
    """
    return adamw8bit(parameters, config) if config.name == "adamw8bit" else adamw(parameters, config)


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
