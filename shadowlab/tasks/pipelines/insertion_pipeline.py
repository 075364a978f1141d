"""A target, an object and a mask to the target with the object in it.

Needs diffusers, torch, numpy and pillow; load it with `DiffusionPipeline.from_pretrained(FOLDER,
trust_remote_code=True)`. The README.md next to this file shows its use.

Legend: B batch, H W pixels of the target, S pixels of the model's square, h w latents (S / 8), ch cw of the canvas.
"""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from .square_pictures import as_images, channels, fit_square, latents_of, square_of, unfit_square, white

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
        vae: ModelMixin,
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
        picture, own = channels(target, "target", 3), channels(object_image, "object_image", 3)
        inside = white(mask, "where the object goes")
        if inside.shape[1:] != picture.shape[1:]:
            raise ValueError(f"the mask has the size {tuple(inside.shape[1:])}, the target {tuple(picture.shape[1:])}")
        given, blind = self.encode(picture, own, inside)
        rows, columns = given.shape[-2:]
        noise = randn_tensor((1, 4, rows, columns), generator=generator, device=given.device, dtype=torch.float32)
        latents = self.denoise(noise, int(num_inference_steps), given, blind, float(guidance_scale))
        made = torch.where(inside > 0, self.decode(latents, *picture.shape[1:]), picture)
        self.maybe_free_model_hooks()
        images = as_images(made, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode(self, picture, own, inside):
        """Mask and latents of what is given, (1, 5, ch, cw), with the object and without it."""
        side, axis = self.config.image_size, DIMENSION[self.config.beside]
        small = (fit_square(inside, side, 0.0) >= 0.5).float()
        if not small.any():
            raise ValueError(f"nothing is left of the mask at {side} x {side} pixels; paint a larger one")
        shown = torch.where(small > 0, 0.0, fit_square(picture, side, 0.5) * 2 - 1)
        squares = torch.stack([shown, fit_square(own, side, 0.5) * 2 - 1]).to(self._execution_device)
        first, second = (latents_of(self.vae, one[None]) for one in squares)
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
        half = latents.chunk(2, dim=DIMENSION[self.config.beside])[0]
        return unfit_square(square_of(self.vae, half), height, width)
