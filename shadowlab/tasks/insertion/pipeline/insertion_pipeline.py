"""A target, an object and a mask to the target with the object in it.

Needs diffusers, torch, numpy and pillow; load it with `DiffusionPipeline.from_pretrained(FOLDER,
trust_remote_code=True)`. The README.md next to this file shows its use.

Legend: B batch, H W pixels of the target, S pixels of the model's square, h w latents (S / 8), ch cw of the canvas.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps

DOWNSCALE = 8  # a latent's side is an eighth of the picture's
DIMENSION = {"height": -2, "width": -1}


class InsertionPipeline(DiffusionPipeline):
    """The object stands next to the target in one canvas; the UNet's 9 channels are [x_t, mask, what is given].

    Args:
        unet: of Stable Diffusion's inpainting kind.
        vae: 4 latent channels, 8 times smaller latents; stays in float32.
        scheduler: in trailing steps.
        image_size: S, what the model was trained at.
        beside: where the object stands, `height` (below) or `width` (to the right).
        prompt: what cross-attention is told, N lists of D numbers.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        image_size: int = 512,
        beside: str = "height",
        prompt: list | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae.float(), scheduler=scheduler)
        self.register_to_config(image_size=image_size, beside=beside, prompt=prompt)

    @torch.no_grad()
    def __call__(
        self,
        target,
        object_image,
        mask,
        num_inference_steps=20,
        guidance_scale=1.0,
        generator=None,
        output_type="pil",
        return_dict=True,
    ):
        """One picture of the target's size; outside the mask every pixel is the target's.

        Args:
            target, object_image: PIL images, or arrays (H, W, 3) uint8 or in [0, 1]; of any size each.
            mask: likewise, grey and of the target's size; the object goes where it reaches 0.5.
            num_inference_steps: calls of the UNet; two for each where there is guidance.
            guidance_scale: 1 is without.
            generator: a `torch.Generator` of the noise.
            output_type: `pil`, or `np`: (1, H, W, 3) float32 in [0, 1].

        Raises:
            ValueError: an input is not what it must be.
        """
        if output_type not in ("pil", "np"):
            raise ValueError(f"output_type is {output_type!r}; give pil or np")
        picture, own, inside = channels(target, "target", 3), channels(object_image, "object_image", 3), white(mask)
        if inside.shape[1:] != picture.shape[1:]:
            raise ValueError(f"the mask has the size {tuple(inside.shape[1:])}, the target {tuple(picture.shape[1:])}")
        given, blind = self.encode(picture, own, inside)
        rows, columns = given.shape[-2:]
        noise = randn_tensor((1, 4, rows, columns), generator=generator, device=given.device, dtype=torch.float32)
        latents = self.denoise(noise, int(num_inference_steps), given, blind, float(guidance_scale))
        made = torch.where(inside > 0, self.decode(latents, *picture.shape[1:]), picture)
        self.maybe_free_model_hooks()
        image = made.permute(1, 2, 0).numpy()
        images = image[None] if output_type == "np" else [Image.fromarray((image * 255).round().astype(np.uint8))]
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode(self, picture, own, inside):
        """Mask and latents of what is given, (1, 5, ch, cw), with the object and without it."""
        side, axis = self.config.image_size, DIMENSION[self.config.beside]
        small = (fit_square(inside, side, 0.0) >= 0.5).float()
        if not small.any():
            raise ValueError(f"nothing is left of the mask at {side} x {side} pixels; paint a larger one")
        shown = torch.where(small > 0, 0.0, fit_square(picture, side, 0.5) * 2 - 1)
        squares = torch.stack([shown, fit_square(own, side, 0.5) * 2 - 1]).to(self._execution_device)
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        first, second = ((self.vae.encode(one[None]).latent_dist.mode() - shift) * scale for one in squares)
        holes = F.max_pool2d(small[None], DOWNSCALE).to(first)
        left = torch.cat([holes, first], dim=1)
        nothing = torch.zeros_like(holes)
        rights = [torch.cat([nothing, one], dim=1) for one in (second, torch.zeros_like(second))]
        return [torch.cat([left, right], dim=axis) for right in rights]

    def denoise(self, latents, steps, given, blind, guidance):
        """Noise (1, 4, ch, cw) to data, by the scheduler in `steps` calls of the UNet."""
        prompt = torch.tensor(self.config.prompt, dtype=self.unet.dtype, device=latents.device)[None]
        self.scheduler.set_timesteps(steps, device=latents.device)

        def predicted(x, timestep, conditions):
            sample = torch.cat([x, conditions], dim=1).to(self.unet.dtype)
            return self.unet(sample, timestep.float().expand(1), prompt, return_dict=False)[0].float()

        for timestep in self.progress_bar(self.scheduler.timesteps):
            found = predicted(latents, timestep, given)
            if guidance != 1.0:
                without = predicted(latents, timestep, blind)
                found = without + guidance * (found - without)
            latents = self.scheduler.step(found, timestep, latents, return_dict=False)[0]
        return latents

    def decode(self, latents, height, width):
        """The target's half of (1, 4, ch, cw) at its own size, (3, H, W) in [0, 1] on the CPU."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        half = latents.chunk(2, dim=DIMENSION[self.config.beside])[0]
        square = ((self.vae.decode(half / scale + shift).sample[0] + 1.0) / 2.0).clamp(0.0, 1.0).cpu()
        rows, columns = inner_size(height, width, square.shape[-1])
        top, left = (square.shape[-1] - rows) // 2, (square.shape[-1] - columns) // 2
        inner = square[:, top : top + rows, left : left + columns]
        return resized(inner, height, width).clamp(inner.min(), inner.max())


def channels(one, name, count):
    """A picture as (count, H, W) float32 in [0, 1]."""
    if isinstance(one, Image.Image):
        one = np.asarray(ImageOps.exif_transpose(one).convert("RGB" if count == 3 else "L"))
    array = np.asarray(one)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (count, 3):
        raise ValueError(f"{name}: shape {array.shape} is not (height, width, {count})")
    unit = array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array.astype(np.float32)
    if not ((unit >= 0) & (unit <= 1)).all():  # NaN fails, too
        raise ValueError(f"{name}: values outside of [0, 1]; give uint8, or floats in [0, 1]")
    return torch.from_numpy(unit[..., :count].copy()).permute(2, 0, 1)


def white(mask):
    """(1, H, W) float32 in {0, 1}."""
    found = (channels(mask, "mask", 1) >= 0.5).float()
    if not found.any():
        raise ValueError("the mask is empty; paint white where the object goes")
    return found


def fit_square(image, side, fill):
    """(C, H, W) -> (C, S, S): the longer side becomes S, the proportions stay, the rest is `fill` on both sides."""
    height, width = inner_size(image.shape[-2], image.shape[-1], side)
    rows, columns = side - height, side - width
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(resized(image, height, width).clamp(image.min(), image.max()), padding, value=fill)


def inner_size(height, width, side):
    """Rows and columns that a picture takes of its square."""
    longer = max(height, width)
    return max(round(height * side / longer), 1), max(round(width * side / longer), 1)


def resized(image, height, width):
    """(C, H, W), bilinear; antialiased where it becomes smaller."""
    if tuple(image.shape[-2:]) == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
