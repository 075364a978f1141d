"""What a task wants of its model, in words that any backbone can follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shadowlab.encoded_batch import LATENT_CHANNELS

Widening = Literal["zero", "repeat", "repeat-zero"]


@dataclass(frozen=True)
class ModelSpec:
    """How a loaded or random backbone is changed for a task, and which of it trains."""

    in_channels: int
    """Channels of [x_t, concatenated conditions]; their order is in the weights of every checkpoint."""
    inputs: tuple[str, ...]
    """Names of what is joined along these channels, x_t first; for people."""
    widening: Widening
    """How `conv_in` gets the channels that the backbone lacks: see `surgery.widen_conv_in`."""
    keeps_cross_attention: bool = False
    """False takes cross-attention out of every block; True feeds it with `Conditions.tokens`."""
    embedding_dim: int | None = None
    """Width of an embedding that is joined to the time embedding; None without one."""
    embedding: str = "embedding"
    """What that embedding says, for people."""
    trainable: tuple[str, ...] = ("*",)
    """Shell patterns over parameter names; the parameters that match one train, the others are frozen."""
    exports_conditions_first: bool = False
    """Whether the pipeline of diffusers that reads an exported folder joins what it is given before x_t."""
    sides: tuple[str, str] = ("h", "w")
    """Letters for height and width of its latents: others where they are not those of one picture."""
    published: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Architecture -> (parameters, tensors) that the changed backbone is known to have."""
    published_trainable: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """The same of those of them that `trainable` lets train."""


def conditions_first(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's tensors (...) for inputs in the order [conditions, x_t], from one for [x_t, conditions]."""
    first = weights["conv_in.weight"]
    turned = torch.cat([first[:, LATENT_CHANNELS:], first[:, :LATENT_CHANNELS]], dim=1)
    return {**weights, "conv_in.weight": turned.contiguous()}


def noise_first(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `conditions_first`."""
    first = weights["conv_in.weight"]
    turned = torch.cat([first[:, -LATENT_CHANNELS:], first[:, :-LATENT_CHANNELS]], dim=1)
    return {**weights, "conv_in.weight": turned.contiguous()}
