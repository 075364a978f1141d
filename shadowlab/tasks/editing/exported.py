"""The editing task's part of an exported model.

Legend: B batch, H W pixels, h w latents (H/8), N tokens, D width of cross-attention.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from shadowlab.encoded_batch import Conditions
from shadowlab.models import mask_to_latent
from shadowlab.tasks.editing.edits import Edit, EditName
from shadowlab.tasks.exported import (
    PIPELINES,
    PipelineCode,
    ProgramInput,
    Trial,
    drawn_mask,
    drawn_picture,
    unit_tensor,
)

if TYPE_CHECKING:
    from shadowlab.models import ImageVae

_USAGE = """\
from PIL import Image

picture = pipe(Image.open("photo.jpg").convert("RGB")).images[0]
picture.save("edited.png")

# What the model itself paints, in four steps, and the same noise each time:
pipe(
    Image.open("photo.jpg").convert("RGB"), num_inference_steps=4, keep_input=False,
    generator=torch.Generator().manual_seed(0),
)"""
_MASK = 'Image.open("photo.jpg").convert("RGB"), Image.open("mask.png")'
_LIMITS: dict[EditName, str] = {
    "white-balance": "One light is corrected, by three factors of linear light: a picture under several lights keeps "
    "what tells them apart, and what was cut off stays so. All pictures are sRGB.",
    "object-removal": "The mask must cover the object and its shadow: outside of it no pixel changes, so that a shadow "
    "that it leaves out stays. All pictures are sRGB.",
    "paint-to-image": "Pictures have the subjects and the look of those that it was trained on. All pictures are sRGB.",
}


class EditingExported:
    """An `Exported`; see there.

    Args:
        vae: the task's.
        edit: that the model was trained for.
        keep_input: as the option.
        prompt: the empty prompt's embedding, (N, D) float32 on the CPU.
    """

    canvas = 1, 1
    output = "picture"
    output_text = "(B, 3, H, W) in [0, 1], as the model paints it"

    def __init__(self, vae: "ImageVae", edit: Edit, *, keep_input: bool, prompt: Tensor) -> None:
        self._vae, self._edit, self._keep, self._prompt = vae, edit, keep_input, prompt
        mask = (ProgramInput("mask", 1, None, "1 where the object or its shadow is, 0 elsewhere"),)
        self.inputs: tuple[ProgramInput, ...] = (
            ProgramInput("image", 3, None, "the picture in [-1, 1]"),
            *(mask if edit.has_mask else ()),
        )
        kept = f" The result keeps {edit.keeps}; keep_input=False gives what the model paints." if edit.keeps else ""
        self.code = PipelineCode(
            folder=PIPELINES,
            pipeline=("editing_pipeline", "EditingPipeline"),
            unet=("diffusers", "UNet2DConditionModel"),
            neighbours=("square_pictures",),
            title=edit.title,
            summary=f"A picture to the same picture edited: {edit.title}. The UNet is given the picture next to the "
            f"noise, after Brooks et al., *InstructPix2Pix* (CVPR 2023), and no prompt.{kept}",
            usage=_USAGE.replace('Image.open("photo.jpg").convert("RGB")', _MASK) if edit.has_mask else _USAGE,
            limits=_LIMITS[edit.name],
        )

    def write_parts(self, folder: Path, image_size: int) -> dict[str, Any]:
        """The scheduler; edit, size and prompt. Raises OSError where the disk refuses."""
        FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
        return {
            "edit": self._edit.name,
            "image_size": image_size,
            "keep_input": self._keep,
            "prompt": self._prompt.tolist(),
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        }

    def unet_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As they are, (...) each."""
        return dict(weights)

    def conditions(self, *inputs: Tensor) -> Conditions:
        """inputs: image (B, 3, H, W) in [-1, 1], and mask (B, 1, H, W) where the edit has one, all float32."""
        vae = self._vae
        given = (vae.unscaled(inputs[0]) - vae.shift_factor) * vae.scaling_factor
        told = self._prompt.to(given.device).expand(given.shape[0], -1, -1)
        return Conditions(torch.cat([given, *(mask_to_latent(mask) for mask in inputs[1:])], dim=1), tokens=told)

    def picture(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        vae = self._vae
        decoded = vae.autoencoder.decode(latents / vae.scaling_factor + vae.shift_factor).sample
        return ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)

    def example(self, count: int, height: int, width: int) -> tuple[Tensor, ...]:
        """image (B, 3, H, W), and mask (B, 1, H, W) where the edit has one."""
        picture = unit_tensor(drawn_picture(height, width)) * 2 - 1
        mask = unit_tensor(drawn_mask(height, width)[..., None]).expand(count, -1, -1, -1).contiguous()
        pictures = torch.stack([picture.roll(5 * i, dims=-1) for i in range(count)])
        return (pictures, mask) if self._edit.has_mask else (pictures,)

    def trials(self) -> list[Trial]:
        """One step with what the result keeps, and four without."""
        sizes = ((90, 133), (150, 70))
        given: list[dict[str, Any]] = [{"image": drawn_picture(*size, phase=float(i))} for i, size in enumerate(sizes)]
        if self._edit.has_mask:
            given = [one | {"mask": drawn_mask(*size)} for one, size in zip(given, sizes, strict=True)]
        return [Trial(given[0] | {"keep_input": True}, 1, 7), Trial(given[1] | {"keep_input": False}, 4, 11)]
