"""The small autoencoder with its optimizer and its watch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diagnostics import Watch
from shadowlab.distributed import Processes, SingleProcess
from shadowlab.encoded_batch import LATENT_CHANNELS
from shadowlab.errors import UserError
from shadowlab.seeding import derive_seed
from shadowlab.settings import OptimizerConfig
from shadowlab.training import adamw

SMALL_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 24, 32, 48),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,  # attention would tie the latents to one picture size
    "force_upcast": True,
}

_WARMUP_SHARE = 0.05
_MAX_LEARNING_RATE = 10.0


@dataclass(frozen=True)
class Asked:
    """What `train_vae` is asked for.

    Raises:
        UserError: a number is out of range.
    """

    steps: int
    seed: int
    batch_size: int
    learning_rate: float
    image_size: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 0.0 < self.learning_rate <= _MAX_LEARNING_RATE:
            raise UserError(
                f"train-vae: steps {self.steps}, batch size {self.batch_size}, learning rate {self.learning_rate}: "
                f"expected steps >= 1, batch size >= 2, a positive learning rate of at most {_MAX_LEARNING_RATE:g}"
            )


@dataclass(frozen=True)
class VaeLearner:
    """The autoencoder as the watched step takes it: float32, one process, no average."""

    model: AutoencoderKL
    optimizer: torch.optim.AdamW
    watch: Watch
    processes: Processes
    learning_rate_config: OptimizerConfig
    max_steps: int
    scaler: None = None
    compiles: bool = False

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def update_average(self, parameters: Iterable[Tensor]) -> None:
        """There is none."""


def build_learner(asked: Asked, device: torch.device, start: Callable[[Any], None]) -> VaeLearner:
    """A fresh autoencoder, its optimizer and its watch. start: sets weights of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(asked.seed, "vae-weights"))
        model: Any = AutoencoderKL(**SMALL_CONFIG, sample_size=asked.image_size)
    start(model)
    model.to(device)
    config = OptimizerConfig(
        learning_rate=asked.learning_rate,
        beta2=0.99,
        weight_decay=1e-4,
        max_grad_norm=1.0,
        schedule="cosine",
        warmup_steps=max(1, round(_WARMUP_SHARE * asked.steps)),
        fused=False,  # the shipped weights were made so
    )
    optimizer = adamw(model.parameters(), config)
    watch = Watch(model, optimizer, statistics_every=0, incidents=None)
    return VaeLearner(model, optimizer, watch, SingleProcess(device), config, asked.steps)
