"""The one place where a model is called, so that another backbone can stand behind the same tasks.

Legend: B batch, C channels, h w latents, D width of an embedding, N tokens.
"""

import torch
from torch import Tensor, nn

from shadowlab.encoded_batch import Conditions


def predict(model: nn.Module, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """The model's prediction at x_t, (B, 4, h, w) float32.

    Args:
        model: a diffusers UNet, or a wrapper around one.
        x_t: (B, 4, h, w), between noise and data.
        timesteps: (B,) float32 in [0, 1000), as the objective gives them.
        conditions: those that the model was built for.
    """
    dtype = next(model.parameters()).dtype
    inputs = [x_t] if conditions.concatenated is None else [x_t, conditions.concatenated]
    sample = torch.cat(inputs, dim=1).to(dtype)
    tokens = None if conditions.tokens is None else conditions.tokens.to(dtype)
    embedding = None if conditions.embedding is None else conditions.embedding.float()
    return model(sample, timesteps, tokens, class_labels=embedding).sample.float()
