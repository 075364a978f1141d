"""The insertion task's part of an exported model.

Legend: B batch, H W pixels, h w latents (H/8), N tokens, D width of cross-attention.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from shadowlab.encoded_batch import Conditions
from shadowlab.models import NoiseSchedule
from shadowlab.tasks.exported import (
    PIPELINES,
    PipelineCode,
    ProgramInput,
    Trial,
    drawn_mask,
    drawn_picture,
    unit_tensor,
)
from shadowlab.tasks.insertion.layout import FACTORS, halves, joined, latent_mask
from shadowlab.tasks.insertion.options import InsertionModelOptions

if TYPE_CHECKING:
    from shadowlab.models import ImageVae

_PREDICTIONS = {"v": ("v_prediction", True), "epsilon": ("epsilon", False)}
"""Objective -> diffusers' name, and whether the schedule ends at zero terminal SNR."""
_USAGE = """\
from PIL import Image

target, object_image = Image.open("room.png"), Image.open("chair.png")
mask = Image.open("where.png").convert("L")  # of the target's size, white where the object goes
pipe(target, object_image, mask, num_inference_steps=20).images[0].save("room-with-chair.png")

# Away from what it makes without the object (of a model trained with condition_dropout), and the same noise
# each time:
pipe(target, object_image, mask, guidance_scale=2.5, generator=torch.Generator().manual_seed(0))"""


class InsertionExported:
    """An `Exported`; see there.

    Args:
        vae: the task's.
        options: objective and layout are looked at.
        prompt: the empty prompt's embedding, (N, D) float32 on the CPU.
    """

    inputs: tuple[ProgramInput, ...] = (
        ProgramInput("given", 3, None, "the target in [-1, 1], 0 wherever the mask is 1"),
        ProgramInput("object_image", 3, None, "the object in [-1, 1]"),
        ProgramInput("mask", 1, None, "1 where the object goes, 0 elsewhere"),
    )
    output = "picture"
    output_text = "(B, 3, H, W) in [0, 1]; to be put into the mask alone"

    def __init__(self, vae: "ImageVae", options: InsertionModelOptions, prompt: Tensor) -> None:
        self._vae, self._options, self._prompt = vae, options, prompt
        self.canvas = FACTORS[options.beside]
        self.code = PipelineCode(
            folder=PIPELINES,
            pipeline=("insertion_pipeline", "InsertionPipeline"),
            unet=("diffusers", "UNet2DConditionModel"),
            neighbours=("square_pictures",),
            title="object insertion",
            summary="A target, an object and a mask to the target with the object in it. The object stands next to the "
            "target in one canvas, and self-attention carries it over, after Chong et al., *CatVTON* (ICLR 2025).",
            usage=_USAGE,
            limits="Outside the mask nothing is changed, so that a shadow ends where the mask does. The object keeps "
            "the view that its picture shows.",
            tolerance=1e-3 if options.objective == "epsilon" else 1e-4,  # data = (x - sigma noise) / alpha
        )

    def write_parts(self, folder: Path, image_size: int) -> dict[str, Any]:
        """The scheduler; size, layout and prompt. Raises OSError where the disk refuses."""
        name, zero_terminal_snr = _PREDICTIONS[self._options.objective]
        schedule = NoiseSchedule(zero_terminal_snr=zero_terminal_snr)
        DDIMScheduler(**schedule.scheduler_config(name)).save_pretrained(folder / "scheduler")
        return {
            "image_size": image_size,
            "beside": self._options.beside,
            "prompt": self._prompt.tolist(),
            "scheduler": ["diffusers", "DDIMScheduler"],
        }

    def unet_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As they are, (...) each."""
        return dict(weights)

    def conditions(self, *inputs: Tensor) -> Conditions:
        """inputs: given, object_image (B, 3, H, W), mask (B, 1, H, W), all float32."""
        given, own, mask = inputs
        vae, small = self._vae, latent_mask(mask)
        first, second = (
            (vae.autoencoder.encode(one).latent_dist.mode() - vae.shift_factor) * vae.scaling_factor
            for one in (given, own)
        )
        target = torch.cat([small, first], dim=1)
        beside = torch.cat([torch.zeros_like(small), second], dim=1)
        told = self._prompt.to(given.device).expand(given.shape[0], -1, -1)
        return Conditions(joined(target, beside, self._options.beside), tokens=told)

    def picture(self, latents: Tensor) -> Tensor:
        """(B, 4, ch, cw) -> the target's half, (B, 3, H, W) float32 in [0, 1]."""
        vae = self._vae
        target, _ = halves(latents, self._options.beside)
        decoded = vae.autoencoder.decode(target / vae.scaling_factor + vae.shift_factor).sample
        return ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """given, object_image (B, 3, H, W), mask (B, 1, H, W)."""
        picture, own = (unit_tensor(drawn_picture(height, width, phase)) * 2 - 1 for phase in (0.0, 2.0))
        mask = unit_tensor(drawn_mask(height, width)[..., None]).round()
        given = torch.where(mask > 0, torch.zeros_like(picture), picture)
        shifted = [[one.roll(5 * i, dims=-1) for i in range(count)] for one in (given, own)]
        return torch.stack(shifted[0]), torch.stack(shifted[1]), mask.expand(count, -1, -1, -1).contiguous()

    def trials(self) -> list[Trial]:
        """One step, and four with guidance on a picture that is high."""
        one = {
            "target": drawn_picture(90, 133),
            "object_image": drawn_picture(64, 80, 2.0),
            "mask": drawn_mask(90, 133),
        }
        other = {
            "target": drawn_picture(150, 70),
            "object_image": drawn_picture(90, 40, 1.0),
            "mask": drawn_mask(150, 70),
        }
        return [
            Trial(one, 1, 7),
            Trial({**other, "guidance": 2.5}, 4, 11, {**other, "guidance_scale": 2.5}),
        ]
