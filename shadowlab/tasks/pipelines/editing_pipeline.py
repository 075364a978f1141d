"""A picture to the same picture edited: its white balance corrected, an object removed, a painting made a picture.

Needs diffusers, torch, numpy and pillow; load it with `DiffusionPipeline.from_pretrained(FOLDER,
trust_remote_code=True)`. The README.md next to this file shows its use.

Legend: B batch, H W pixels of the picture, S pixels of the model's square, h w latents (S / 8).
"""

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from .square_pictures import as_images, channels, fit_square, latents_of, square_of, unfit_square, white

DOWNSCALE = 8  # a latent's side is an eighth of the picture's
COVERED = 1e-3  # share of a pixel from which on the mask has it
CLIPPED = 254.5 / 255  # sRGB value from which on a channel is cut off


class EditingPipeline(DiffusionPipeline):
    """The UNet's channels are [x_t, input], and the mask where the edit has one.

    Args:
        unet: of Stable Diffusion's kind, with 8 or 9 channels; predicts data - noise.
        vae: 4 latent channels, 8 times smaller latents; stays in float32.
        scheduler: a flow's; its sigmas are 1, (N - 1) / N, ..., 1 / N.
        edit: `white-balance`, `object-removal` or `paint-to-image`.
        image_size: S, what the model was trained at.
        keep_input: whether a result has of the picture what the edit does not concern.
        prompt: what cross-attention is told, N lists of D numbers.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler,
        edit: str = "white-balance",
        image_size: int = 128,
        keep_input: bool = True,
        prompt: list | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae.float(), scheduler=scheduler)
        self.register_to_config(edit=edit, image_size=image_size, keep_input=keep_input, prompt=prompt)

    @torch.no_grad()
    def __call__(
        self,
        image,
        mask=None,
        num_inference_steps=1,
        keep_input=None,
        generator=None,
        output_type="pil",
        return_dict=True,
    ):
        """The edited picture, of the picture's size.

        Args:
            image: a PIL image, or an array (H, W, 3) uint8 or in [0, 1], sRGB.
            mask: of object-removal, likewise, grey and of the same size: white is the object with its shadow.
            num_inference_steps: calls of the UNet.
            keep_input: True: of a white balance all detail is the picture's, and three gains are the model's; of
                object-removal every pixel outside the mask is the picture's. False: what the model paints. None: as
                configured.
            generator: a `torch.Generator` of the noise.
            output_type: `pil`, or `np`: (1, H, W, 3) float32 in [0, 1].

        Raises:
            ValueError: an input is not what it must be.
        """
        if output_type not in ("pil", "np"):
            raise ValueError(f"output_type is {output_type!r}; give pil or np")
        if int(num_inference_steps) < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; give at least 1")
        picture, side = channels(image, "image", 3), self.config.image_size
        inside = self.covered(mask, picture)
        square = fit_square(picture, side, 0.0)
        conditions = self.encode(square, (fit_square(inside, side, 0.0) > COVERED).float())
        noise = randn_tensor((1, 4, *conditions.shape[-2:]), generator=generator, device=conditions.device)
        painted = square_of(self.vae, self.denoise(noise, int(num_inference_steps), conditions))
        keeps = self.config.keep_input if keep_input is None else keep_input
        if keeps and self.config.edit == "white-balance":
            valid = fit_square(torch.ones_like(picture[:1]), side, 0.0) > 1 - COVERED
            result = cast(picture, fitted_gains(square, painted, valid))
        else:
            result = unfit_square(painted, *picture.shape[1:])
        if keeps and self.config.edit == "object-removal":
            result = torch.where(inside > 0, result, picture)
        self.maybe_free_model_hooks()
        images = as_images(result, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def covered(self, mask, picture):
        """(1, H, W) in {0, 1}: all ones where the edit has no mask."""
        if self.config.edit != "object-removal":
            if mask is not None:
                raise ValueError(f"{self.config.edit} has no mask; leave it out")
            return torch.ones_like(picture[:1])
        if mask is None:
            raise ValueError("object-removal needs a mask: white is the object with its shadow")
        inside = white(mask, "the object and its shadow")
        if inside.shape[1:] != picture.shape[1:]:
            raise ValueError(f"the mask has the size {tuple(inside.shape[1:])}, the picture {tuple(picture.shape[1:])}")
        return inside

    def encode(self, square, mask):
        """What the UNet is given next to x_t, (1, 4 or 5, h, w). square: (3, S, S) in [0, 1]. mask: (1, S, S)."""
        device = self._execution_device
        given = latents_of(self.vae, square[None].to(device) * 2 - 1)
        if self.config.edit != "object-removal":
            return given
        return torch.cat([given, F.avg_pool2d(mask[None].to(given), DOWNSCALE)], dim=1)

    def denoise(self, latents, steps, conditions):
        """Noise (1, 4, h, w) to data, by the scheduler in `steps` calls of the UNet."""
        dtype = self.unet.dtype
        prompt = torch.tensor(self.config.prompt, dtype=dtype, device=latents.device)[None]
        self.scheduler.set_timesteps(sigmas=[1.0 - step / steps for step in range(steps)], device=latents.device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            sample = torch.cat([latents, conditions], dim=1).to(dtype)
            velocity = self.unet(sample, timestep.float().expand(1), prompt, return_dict=False)[0].float()
            latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
        return latents


def fitted_gains(given, wanted, valid):
    """Factors (3,) of linear light that bring (3, S, S) nearest to `wanted`; what is cut off does not count."""
    weights = (valid * (given < CLIPPED) * (wanted < CLIPPED)).double()
    x, y = to_linear(given.double()), to_linear(wanted.double())
    power = (weights * x * x).sum(dim=(1, 2))
    found = (weights * x * y).sum(dim=(1, 2)) / power.clamp_min(1e-12)
    return torch.where(power > 1e-12, found, torch.ones_like(found)).float()


def cast(picture, gains):
    """sRGB (3, H, W) in [0, 1] under factors (3,) of linear light."""
    return to_srgb((to_linear(picture) * gains[:, None, None]).clamp(0, 1))


def to_linear(srgb):
    """IEC 61966-2-1, (...) in [0, 1]."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear):
    """The inverse of `to_linear`."""
    curve = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, linear * 12.92, curve)
