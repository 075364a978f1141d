"""The albedo task's part of an exported model: diffusers' own `MarigoldIntrinsicsPipeline` loads and runs it.

Legend: B batch, H W pixels, h w latents (H/8), N tokens, D width of cross-attention.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from shadowlab.encoded_batch import Conditions
from shadowlab.errors import UserError
from shadowlab.models import NoiseSchedule, conditions_first
from shadowlab.tasks.albedo.empty_text_encoder import write_empty_text_encoder
from shadowlab.tasks.colour import ColourSpace
from shadowlab.tasks.exported import PipelineCode, ProgramInput, Trial

if TYPE_CHECKING:
    from shadowlab.models import ImageVae

PIPELINE = "MarigoldIntrinsicsPipeline"
_PREDICTIONS = {"v": ("v_prediction", True), "epsilon": ("epsilon", False)}
"""Objective -> diffusers' name, and whether the schedule ends at zero terminal SNR."""
_USAGE = """\
from PIL import Image

intrinsics = pipe(Image.open("beauty.png").convert("RGB"), ensemble_size=1)
albedo = pipe.image_processor.visualize_intrinsics(intrinsics.prediction, pipe.target_properties)[0]["albedo"]
albedo.save("albedo.png")

# Several predictions, their median, and where they disagree:
intrinsics = pipe(Image.open("beauty.png").convert("RGB"), ensemble_size=8, output_uncertainty=True)"""


class AlbedoExported:
    """An `Exported`; see there.

    Args:
        vae: the task's.
        objective: of the options: `v`, `epsilon` or `flow`.
        space: the model's colour space.
        prompt: the empty prompt's embedding, (N, D) float32 on the CPU.
    """

    inputs: tuple[ProgramInput, ...] = (
        ProgramInput("beauty", 3, None, "the picture in [-1, 1], in the model's space"),
    )
    canvas = 1, 1
    output = "albedo"
    output_text = "(B, 3, H, W) in [0, 1], in the model's colour space"

    def __init__(self, vae: "ImageVae", objective: str, space: ColourSpace, prompt: Tensor) -> None:
        self._vae, self._objective, self._space, self._prompt = vae, objective, space, prompt
        self.code = PipelineCode(
            folder=None,
            pipeline=("diffusers", PIPELINE),
            unet=("diffusers", "UNet2DConditionModel"),
            title="albedo from a beauty image",
            summary="A finished picture to the colour of its surfaces, without light, shadow and gloss. After Ke et "
            "al., *Repurposing Diffusion-Based Image Generators for Monocular Depth Estimation* (Marigold, CVPR 2024).",
            usage=_USAGE,
            limits=f"Pictures and albedos are in the colour space `{space}`"
            + ("" if space == "srgb" else ": bring a picture to linear light before it is given to the pipeline")
            + ". The scale is that of the training data: nothing is aligned afterwards.",
            needs="torch diffusers transformers pillow numpy",
            tolerance=1e-3
            if objective == "epsilon"
            else 1e-4,  # data = (x - sigma noise) / alpha: 15 times any rounding
        )

    def write_parts(self, folder: Path, image_size: int) -> dict[str, Any]:
        """Scheduler, and a text encoder that knows the empty prompt alone.

        Raises:
            UserError: the objective, the VAE or the prompt is none that the pipeline knows.
            MissingDependencyError: transformers is not installed.
            OSError: the disk refuses.
        """
        if self._objective not in _PREDICTIONS:
            raise UserError(
                f"--to diffusers: {PIPELINE} draws by DDIM, and this model predicts a rectified flow; take --to torch "
                "or onnx, or train with task_options.model.objective=v"
            )
        if self._vae.shift_factor:
            raise UserError(f"--to diffusers: {PIPELINE} knows no shift_factor, and the VAE has one; take --to torch")
        name, zero_terminal_snr = _PREDICTIONS[self._objective]
        schedule = NoiseSchedule(zero_terminal_snr=zero_terminal_snr)
        DDIMScheduler(**schedule.scheduler_config(name)).save_pretrained(folder / "scheduler")
        write_empty_text_encoder(folder, self._prompt)
        target = {"prediction_space": self._space, "up_to_scale": False}
        return {
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "prediction_type": "intrinsics",
            "target_properties": {"target_names": ["albedo"], "albedo": target},
            "default_denoising_steps": 1,
            "default_processing_resolution": image_size,
        }

    def unet_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Marigold's first input is the picture, and ours the noise: the first layer's weights (C, 8, 3, 3) turn."""
        return conditions_first(weights)

    def conditions(self, *inputs: Tensor) -> Conditions:
        """inputs: beauty (B, 3, H, W) float32 in [-1, 1]."""
        (beauty,) = inputs
        vae, told = self._vae, self._prompt
        latents = (vae.unscaled(beauty) - vae.shift_factor) * vae.scaling_factor
        return Conditions(latents, tokens=told.to(beauty.device).expand(beauty.shape[0], -1, -1))

    def picture(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        vae = self._vae
        decoded = vae.autoencoder.decode(latents / vae.scaling_factor + vae.shift_factor).sample
        return ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """beauty (B, 3, H, W)."""
        picture = torch.from_numpy(_drawn(height, width).astype(np.float32) / 255).permute(2, 0, 1) * 2 - 1
        return (torch.stack([picture.roll(5 * i, dims=-1) for i in range(count)]),)

    def trials(self) -> list[Trial]:
        """One prediction in one step, and the median of three in four."""
        wide, tall = _drawn(90, 133), _drawn(150, 70)
        one = {"image": wide, "space": self._space}
        three = {"image": tall, "ensemble": 3, "space": self._space}
        return [
            Trial(one, 1, 7, {"image": wide, "ensemble_size": 1}),
            Trial(three, 4, 11, {"image": tall, "ensemble_size": 3}, 3),
        ]


def _drawn(height: int, width: int) -> np.ndarray:
    """Coloured waves under a light that falls off, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    across, down = x / width, y / height
    colours = [0.5 + 0.4 * np.sin(9 * across + phase) * np.cos(6 * down + phase) for phase in (0.0, 1.0, 2.0)]
    light = 1 - 0.6 * np.hypot(across - 0.2, down - 0.3)
    return np.round(np.stack(colours, axis=2) * light[..., None] * 255).astype(np.uint8)
