"""The two classes of autoencoders that latents here can come from, both of diffusers.

`AutoencoderKL`       Stable Diffusion's: a posterior whose mode is scaled by `scaling_factor`
`AutoencoderTiny`     its distillation (TAESD, madebyollin): 2,445,063 parameters in place of 83,653,863. It gives
                      latents, no posterior, and they are scaled already: `scaling_factor` is 1, and one that scales
                      them again gives noise (AUTOMATIC1111/stable-diffusion-webui#12596)
"""

import math
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from shadowlab.encoded_batch import DOWNSCALE, LATENT_CHANNELS
from shadowlab.errors import UserError

# SDXL base's own `vae/config.json`; keys left out have the class's defaults there too.
SDXL_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

# TAESD's own `config.json`, SD 1.5's as SDXL's; keys left out have the class's defaults.
TINY_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": (64, 64, 64, 64),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "act_fn": "relu",
    "latent_channels": LATENT_CHANNELS,
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}

# Of the configuration, what decides a latent other than the encoder's weights.
_DECIDES_LATENTS = (
    "act_fn",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "use_quant_conv",
)
_DECIDES_TINY_LATENTS = (
    "_class_name",
    "act_fn",
    "encoder_block_out_channels",
    "num_encoder_blocks",
    "scaling_factor",
    "shift_factor",
)
_MOST_BLOCKS = 64  # of a level
_MOST_CHANNELS = 2**14  # SDXL's has 512


def is_tiny(config: Any) -> bool:
    """Whether a configuration, as config.json or a model has it, is an `AutoencoderTiny`'s."""
    return config.get("_class_name") == AutoencoderTiny.__name__ or "encoder_block_out_channels" in config


def class_of(config: Any) -> Any:
    """Of a model with this configuration."""
    return AutoencoderTiny if is_tiny(config) else AutoencoderKL


def autoencoder_of(config: dict[str, Any]) -> Any:
    """The autoencoder that a configuration describes, with whatever values its tensors come with.

    Raises:
        ValueError, TypeError, RuntimeError, LookupError, AttributeError: it describes none.
    """
    return class_of(config).from_config(config)


def latents_of(autoencoder: Any, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 4, h, w), not shifted and not scaled: the posterior's mode, or the latents."""
    encoded = autoencoder.encode(images)
    latents: Tensor = encoded.latents if is_tiny(autoencoder.config) else encoded.latent_dist.mode()
    return latents


def encoder_config(config: Any) -> dict[str, Any]:
    """Of a model's configuration, what decides a latent other than the encoder's weights."""
    keys = _DECIDES_TINY_LATENTS if is_tiny(config) else _DECIDES_LATENTS
    return {key: config.get(key) for key in keys}


def check_config(config: dict[str, Any], where: str) -> None:
    """Raise UserError unless a model of this configuration gives (4, H / 8, W / 8) latents of RGB pictures."""
    for key, expected in (("latent_channels", LATENT_CHANNELS), ("in_channels", 3), ("out_channels", 3)):
        if (found := config.get(key, expected if key != "latent_channels" else None)) != expected:
            raise UserError(f"{where}: {key} is {found}, expected {expected}; use a VAE of SDXL's class")
    if is_tiny(config):
        _check_tiny(config, where)
        return
    blocks = config.get("block_out_channels")
    if not isinstance(blocks, list | tuple) or 2 ** (len(blocks) - 1) != DOWNSCALE:
        raise UserError(
            f"{where}: block_out_channels is {blocks}, expected 4 entries: latents {DOWNSCALE} times smaller"
        )
    groups = config.get("norm_num_groups", SDXL_CONFIG["norm_num_groups"])
    numbers = [*blocks, groups, config.get("layers_per_block", 1)]
    if any(type(number) is not int or not 0 < number <= _MOST_CHANNELS for number in numbers):
        raise UserError(f"{where}: block_out_channels, norm_num_groups or layers_per_block is no positive number")
    if any(channels % groups for channels in blocks):
        raise UserError(f"{where}: norm_num_groups {groups} does not divide block_out_channels {list(blocks)}")
    scaling, shift = config.get("scaling_factor"), config.get("shift_factor")
    if not isinstance(scaling, int | float) or not 0.0 < scaling < math.inf:
        raise UserError(f"{where}: scaling_factor is {scaling}, expected a positive number (SDXL's is 0.13025)")
    if shift is not None and not (isinstance(shift, int | float) and math.isfinite(shift)):
        raise UserError(f"{where}: shift_factor is {shift}, expected a number or null")
    for key in ("latents_mean", "latents_std"):  # a second normalisation, which would be ignored here
        if config.get(key) is not None:
            raise UserError(f"{where}: {key} is set, which is not supported; use a VAE with scaling_factor alone")


def _check_tiny(config: dict[str, Any], where: str) -> None:
    """Raise UserError unless an `AutoencoderTiny` gives 8 times smaller latents that are scaled already."""
    for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
        blocks = config.get(key, TINY_CONFIG[key])
        if not isinstance(blocks, list | tuple) or 2 ** (len(blocks) - 1) != DOWNSCALE:
            raise UserError(f"{where}: {key} is {blocks}, expected 4 entries: latents {DOWNSCALE} times smaller")
        if any(type(number) is not int or not 0 < number <= _MOST_CHANNELS for number in blocks):
            raise UserError(f"{where}: {key} is {blocks}, expected positive numbers")
    for key in ("num_encoder_blocks", "num_decoder_blocks"):
        numbers = config.get(key, TINY_CONFIG[key])
        is_list = isinstance(numbers, list | tuple) and len(numbers) == len(TINY_CONFIG[key])
        if not is_list or any(type(number) is not int or not 0 < number <= _MOST_BLOCKS for number in numbers):
            raise UserError(f"{where}: {key} is {numbers}, expected 4 positive numbers")
    for key, expected in (("scaling_factor", 1.0), ("shift_factor", 0.0), ("upsampling_scaling_factor", 2)):
        if (found := config.get(key, expected)) not in (expected, None):
            raise UserError(
                f"{where}: {key} is {found}, and the latents of an AutoencoderTiny are scaled already: set it to "
                f"{expected:g}"
            )
