"""The shadow task's part of an exported model.

Legend: B batch, H W pixels, h w latents (H/8).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from shadowlab.encoded_batch import DOWNSCALE, Conditions
from shadowlab.tasks.exported import PipelineCode, ProgramInput, Trial
from shadowlab.tasks.shadow.light import intensity_vector, light_vector

if TYPE_CHECKING:
    from shadowlab.models import ImageVae

_USAGE = """\
from PIL import Image

object_image, mask = Image.open("object.png"), Image.open("mask.png")  # one size; white = object
shadow = pipe(object_image, mask, theta=30.0, phi=90.0, size=4.0).images[0]  # grey, bright = shadow
shadow.save("shadow.png")

# A picture with transparency needs no mask; several lights at once; several steps; the same noise each time:
shadows = pipe(
    Image.open("object.png"), phi=[0.0, 90.0, 180.0, 270.0], num_inference_steps=4,
    generator=[torch.Generator().manual_seed(0) for _ in range(4)],
).images"""


class ShadowExported:
    """An `Exported`; see there.

    Args:
        vae: the task's.
        tells_intensity: whether the model is told the light's intensity, too; then it is told 1, as in `generate`.
    """

    code = PipelineCode(
        folder=Path(__file__).parent / "pipeline",
        pipeline=("pipeline", "ShadowPipeline"),
        unet=("shadow_unet", "ShadowUNet"),
        title="controllable shadows",
        summary="A picture of an object, its mask and a light (theta, phi, size) to the shadow that the object casts "
        "on the ground: a grey map of the picture's size, bright = shadow. After Tasar et al., *Controllable Shadow "
        "Generation with Single-Step Diffusion Models from Synthetic Data* (arXiv 2412.11972).",
        usage=_USAGE,
        limits="Trained on renders of single objects that stand on a plane, under one square light: theta is 0 to 45 "
        "degrees from straight above, phi 0 to 360 degrees with 0 at the right, size 2 to 8 scene units on a sphere of "
        "radius 8. It knows nothing of other objects, walls or slopes in the picture.",
    )
    inputs: tuple[ProgramInput, ...] = (
        ProgramInput("object_image", 3, None, "the object in [-1, 1], 0 wherever the mask is 0"),
        ProgramInput("mask", 1, None, "1 on the object, 0 elsewhere"),
        ProgramInput("light", None, 3, "theta in [0, 45] and phi in [0, 360] degrees, size in [2, 8] scene units"),
    )
    canvas = 1, 1
    output = "shadow"
    output_text = "(B, 1, H, W) in [0, 1], bright = shadow"

    def __init__(self, vae: "ImageVae", *, tells_intensity: bool = False) -> None:
        self._vae, self._tells_intensity = vae, tells_intensity

    def write_parts(self, folder: Path, image_size: int) -> dict[str, Any]:
        """The scheduler, and the size that pictures are brought to."""
        FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
        return {"image_size": image_size, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}

    def unet_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As they are, (...) each."""
        return dict(weights)

    def conditions(self, *inputs: Tensor) -> Conditions:
        """inputs: object_image (B, 3, H, W), mask (B, 1, H, W), light (B, 3), all float32."""
        object_image, mask, light = inputs
        vae = self._vae
        latents = (vae.unscaled(object_image) - vae.shift_factor) * vae.scaling_factor
        embedding = light_vector(light)
        if self._tells_intensity:
            embedding = torch.cat([embedding, intensity_vector(torch.ones_like(light[:, 0]))], dim=1)
        return Conditions(torch.cat([latents, F.avg_pool2d(mask, DOWNSCALE)], dim=1), embedding)

    def picture(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 1, H, W) float32 in [0, 1]."""
        vae = self._vae
        decoded = vae.autoencoder.decode(latents / vae.scaling_factor + vae.shift_factor).sample
        return ((decoded[:, :1] + 1.0) / 2.0).clamp(0.0, 1.0)

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """object_image (B, 3, H, W), mask (B, 1, H, W), light (B, 3)."""
        pixels = torch.from_numpy(_drawn_object(height, width).astype(np.float32) / 255).permute(2, 0, 1)
        mask = (pixels[3:] >= 0.5).float().expand(count, -1, -1, -1)
        object_image = torch.where(mask > 0, pixels[:3] * 2 - 1, 0.0)
        lights = [[10.0 + 10 * (i % 4), (77.0 * i) % 360, 2.0 + i % 7] for i in range(count)]
        return object_image, mask.contiguous(), torch.tensor(lights)

    def trials(self) -> list[Trial]:
        """A picture with alpha and no mask in one step, and one with a mask in four."""
        wide, tall = _drawn_object(90, 133), _drawn_object(150, 70)
        first = {"object_image": wide, "mask": None, "theta": 33.3, "phi": 123.4, "size": 5.6}
        second = {"object_image": tall[..., :3], "mask": tall[..., 3], "theta": 12.0, "phi": 359.0, "size": 2.0}
        return [Trial(first, 1, 7), Trial(second, 4, 11)]


def _drawn_object(height: int, width: int) -> np.ndarray:
    """A shaded disc with a soft rim on nothing, (H, W, 4) uint8."""
    y, x = np.mgrid[:height, :width]
    across, down = (x - width * 0.45) / (0.3 * width), (y - height * 0.5) / (0.35 * height)
    radius = np.hypot(across, down)
    alpha = np.clip((1.05 - radius) * 10, 0, 1)
    colours = [0.5 + 0.4 * np.sin(3 * across + phase) * np.cos(2 * down) for phase in (0.0, 1.0, 2.0)]
    return np.round(np.stack([*colours, alpha], axis=2) * 255).astype(np.uint8)
