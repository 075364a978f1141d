"""The UNet of SDXL's class without cross-attention, as diffusers loads it with `trust_remote_code=True`.

Needs diffusers and torch alone.
"""

import functools
import math

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

NUM_HARMONICS = 128


class ShadowUNet(UNet2DConditionModel):
    """A `UNet2DConditionModel` whose transformer blocks have no cross-attention: not replaced by nothing, which would
    leave each block adding its norm, but absent. Call it with `encoder_hidden_states=None`."""

    # diffusers reads the signature to know what config.json may say.
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder_hid_proj = None
        for module in self.modules():
            if isinstance(module, BasicTransformerBlock):
                module.attn2 = None
                module.norm2 = None

    def embed_light(self, lights):
        """Lights (B, 3), float64 theta, phi in degrees and size in scene units -> (B, 768) float32: cosines and sines
        of 128 multiples of each one's angle. A model that was also told how strong a light is, (B, 1024), is told 1.

        phi turns a full circle over its range, theta (0 to 45) and size (2 to 8) half a one. With the weights
        sqrt(0.8 ** k) the inner product of two vectors falls strictly with the angle between them.
        """
        theta, phi, size = lights.unbind(dim=1)
        angles = [theta / 45.0 * math.pi, torch.remainder(phi, 360.0) / 180.0 * math.pi, (size - 2.0) / 6.0 * math.pi]
        if self.config.projection_class_embeddings_input_dim > 2 * NUM_HARMONICS * len(angles):
            angles.append(torch.full_like(theta, math.pi))
        k = torch.arange(1, NUM_HARMONICS + 1, dtype=torch.float64, device=lights.device)
        weight = 0.8 ** (k / 2)
        weight = weight * math.sqrt(NUM_HARMONICS) / weight.norm()
        phases = [angle[:, None] * k for angle in angles]
        parts = [weight * part for phase in phases for part in (phase.cos(), phase.sin())]
        return torch.cat(parts, dim=1).float()
