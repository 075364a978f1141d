"""What every task builds its model from: backbone and its changes, VAE, precision, objective."""

from shadowlab.models.adapter import predict
from shadowlab.models.diffusion import EpsilonPrediction, VPrediction
from shadowlab.models.dream import Dream
from shadowlab.models.flow import RectifiedFlow, interpolate, stratified_times, velocity
from shadowlab.models.multi_resolution import MultiResolutionNoise
from shadowlab.models.noise_schedule import NoiseSchedule
from shadowlab.models.objective import ForwardSeen, Objective, Predict, loss_where_known
from shadowlab.models.one_step import OneStep
from shadowlab.models.precision import POLICIES, Precision, true_float32
from shadowlab.models.spec import ModelSpec, Widening, conditions_first, noise_first
from shadowlab.models.surgery import (
    adapt,
    conv_in_before,
    cross_attention_modules,
    freeze,
    remove_cross_attention,
    widened_from,
)
from shadowlab.models.unet import architecture_config, architecture_of, load_unet, unwritten_unet, weights_folder
from shadowlab.models.vae import (
    WEIGHTS_NAME,
    ImageVae,
    embedded_parameters,
    is_called_tiny,
    load_vae,
    mask_to_latent,
    unwritten_vae,
)

__all__ = [
    # the backbone
    "ModelSpec",
    "conditions_first",
    "noise_first",
    "Widening",
    "adapt",
    "architecture_config",
    "architecture_of",
    "conv_in_before",
    "cross_attention_modules",
    "freeze",
    "load_unet",
    "predict",
    "remove_cross_attention",
    "unwritten_unet",
    "weights_folder",
    "widened_from",
    # the autoencoder
    "WEIGHTS_NAME",
    "ImageVae",
    "embedded_parameters",
    "is_called_tiny",
    "load_vae",
    "mask_to_latent",
    "unwritten_vae",
    # what is predicted, and in which arithmetic
    "POLICIES",
    "Dream",
    "EpsilonPrediction",
    "ForwardSeen",
    "MultiResolutionNoise",
    "NoiseSchedule",
    "Objective",
    "OneStep",
    "Precision",
    "Predict",
    "RectifiedFlow",
    "VPrediction",
    "interpolate",
    "loss_where_known",
    "stratified_times",
    "true_float32",
    "velocity",
]
