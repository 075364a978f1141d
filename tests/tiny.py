"""Things small enough to build in every test: a UNet in the hub's layout, a VAE, a data set, a trainee."""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from shadowlab.distributed.processes import Processes, SingleProcess
from shadowlab.encoded_batch import Conditions, EncodedBatch
from shadowlab.models import ModelSpec, RectifiedFlow, Widening, load_unet, predict
from shadowlab.seeding import normal
from shadowlab.settings.files import load_config
from shadowlab.settings.schema import Config
from shadowlab.tasks.shadow.light import EMBEDDING_DIM
from shadowlab.tasks.shadow.task import ShadowTask
from shadowlab.training.trainee import Trainee, build_trainee, prepare_unet
from tests.tasks.shadow.sound import make_folder

IN_CHANNELS = 9
SIDE = 4  # latents

# SDXL's make in small: text_time addition embedding, cross-attention, linear projections, no attention at the top.
HUB_CONFIG: dict[str, Any] = {
    "sample_size": SIDE,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (4, 4, 4, 4),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
}


def hub_unet(**changes: Any) -> Any:
    """A UNet as a hub would have it: 4 channels, cross-attention, pooled text."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**HUB_CONFIG, **changes})
    return unet.eval()


def save_hub_unet(folder: Path, **changes: Any) -> Path:
    hub_unet(**changes).save_pretrained(folder)
    return folder


def save_vae(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderKL(**VAE_CONFIG).save_pretrained(folder)
    return folder


def shadow_unet(
    weights: Path | str,
    *,
    in_channels: int = IN_CHANNELS,
    widening: Widening = "zero",
    embedding_dim: int = EMBEDDING_DIM,
) -> Any:
    spec = ModelSpec(in_channels, ("x_t", "others"), widening, embedding_dim=embedding_dim)
    return load_unet(str(weights), "tiny", spec, seed=0)


def predicted(unet: Any, batch: EncodedBatch, t: torch.Tensor) -> torch.Tensor:
    """Velocity (B, 4, h, w) at x_t = the batch's data; t (B,)."""
    return predict(unet, batch.data, RectifiedFlow().timesteps(t), batch.conditions)


@lru_cache
def _loaded(weights: str) -> Any:
    return shadow_unet(weights)


def config_of(weights: Path | str, *assignments: str) -> Config:
    return load_config(options={"model.weights": str(weights), "device": "cpu"}, assignments=assignments)


def stage_config(folders: dict[str, Path], output: Path, *assignments: str) -> Config:
    """Whole stages on `stage_folder`: batch 2, two pictures to judge by."""
    return config_of(
        folders["unet"],
        f"data.path={folders['data']}",
        f"model.vae={folders['vae']}",
        f"data.image_size={SIDE * 8}",
        f"output_dir={output}",
        "train.batch_size=2",
        "validation.num_samples=2",
        "validation.num_noises=1",
        "validation.timesteps=[0.0, 0.5]",
        "validation.light_sweep=false",
        "overfit.num_samples=2",
        "overfit.max_steps=2",
        "optimizer.warmup_steps=2",
        *assignments,
    )


def trainee_of(
    weights: Path,
    *assignments: str,
    processes: Processes | None = None,
    trains: Callable[[str], bool] = lambda name: True,
) -> Trainee:
    """A trainee of `weights` at a rate that moves every weight. trains: whether the parameter of a name does."""
    config = config_of(weights, "optimizer.learning_rate=1e-2", "optimizer.warmup_steps=0", *assignments)
    unet = copy.deepcopy(_loaded(str(weights)))
    alone = processes or SingleProcess(torch.device("cpu"))
    prepare_unet(unet, config, ShadowTask.spec, alone.device)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(trains(name))
    settings = config.train
    return build_trainee(
        config, unet, RectifiedFlow(), alone, config.optimizer, settings.max_steps, ema_decay=settings.ema_decay
    )


def encoded_batch(positions: Sequence[int], seed: int = 0) -> EncodedBatch:
    """Random conditions and targets; the sample at a position is the same in every batch."""

    def stack(name: str, *shape: int) -> torch.Tensor:
        return torch.stack([normal(shape, seed, name, position) for position in positions])

    return EncodedBatch(
        ids=[f"sample_{position}" for position in positions],
        positions=torch.tensor(list(positions)),
        data=stack("data", 4, SIDE, SIDE),
        conditions=Conditions(
            concatenated=stack("concatenated", 5, SIDE, SIDE), embedding=stack("embedding", EMBEDDING_DIM)
        ),
    )


def stage_folder(root: Path, num_samples: int = 8) -> dict[str, Path]:
    """Data, UNet and VAE for whole stages."""
    make_folder(root / "data", num_samples)
    return {"data": root / "data", "unet": save_hub_unet(root / "unet"), "vae": save_vae(root / "vae")}


def weights_of(trainee: Trainee) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainee.unet.state_dict().items()}
