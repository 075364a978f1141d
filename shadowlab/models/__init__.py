"""What every task builds its model from: UNet, VAE, precision, flow."""

from shadowlab.models.flow import integrate, interpolate, loss_per_sample, stratified_times, velocity
from shadowlab.models.precision import POLICIES, Precision
from shadowlab.models.unet import (
    Widening,
    add_embedding_input,
    architecture_config,
    architecture_of,
    cross_attention_modules,
    load_unet,
    predict_velocity,
    remove_cross_attention,
    unwritten_unet,
    was_widened,
    widen_conv_in,
)
from shadowlab.models.vae import (
    DOWNSCALE,
    LATENT_CHANNELS,
    WEIGHTS_NAME,
    ShadowVae,
    embedded_parameters,
    load_vae,
    mask_to_latent,
    unwritten_vae,
)

__all__ = [
    "DOWNSCALE",
    "LATENT_CHANNELS",
    "POLICIES",
    "WEIGHTS_NAME",
    "Precision",
    "ShadowVae",
    "Widening",
    "add_embedding_input",
    "architecture_config",
    "architecture_of",
    "cross_attention_modules",
    "embedded_parameters",
    "integrate",
    "interpolate",
    "load_unet",
    "load_vae",
    "loss_per_sample",
    "mask_to_latent",
    "predict_velocity",
    "remove_cross_attention",
    "stratified_times",
    "unwritten_unet",
    "unwritten_vae",
    "velocity",
    "was_widened",
    "widen_conv_in",
]
