"""A picture of an object, its mask and a light to the shadow that the object casts on the ground.

Needs diffusers, torch, numpy and pillow; load it with `DiffusionPipeline.from_pretrained(FOLDER,
trust_remote_code=True)`. The README.md next to this file shows its use.

Legend: B batch, H W pixels of a picture, S pixels of the model's square, h w latents (S / 8).
"""

import contextlib
import inspect
import json
import os
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps

DOWNSCALE = 8  # a latent's side is an eighth of the picture's
LIGHT = {"theta": (0.0, 45.0), "phi": (0.0, 360.0), "size": (2.0, 8.0)}  # degrees, degrees, scene units
MAX_PIXELS = 2 * 1024 * 1024  # that pass the VAE at a time: memory stays flat in the size of the batch


@contextlib.contextmanager
def float32_convolutions():
    """Inside, float32 is float32 on NVIDIA's chips, too, as it was when the model was judged."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class ShadowPipeline(DiffusionPipeline):
    """Object, mask and light to the grey shadow map of the ground, bright = shadow.

    The VAE stays in float32 whatever the UNet is in: in float16, SDXL's gives NaN.

    Args:
        unet: takes 9 channels (noise, object, mask) and a light vector of 768 numbers, predicts data - noise.
        vae: 4 latent channels, 8 times smaller latents.
        scheduler: a flow's; its sigmas are 1, (N - 1) / N, ..., 1 / N.
        image_size: S, what the model was trained at.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler,
        image_size: int = 128,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=in_float32(vae), scheduler=scheduler)
        self.register_to_config(image_size=image_size)

    def to(self, *args, **kwargs):
        """As `DiffusionPipeline.to`; a dtype is the UNet's alone."""
        given = [*args, kwargs.pop("dtype", None)]
        dtypes = [one for one in given if isinstance(one, torch.dtype)]
        super().to(*(one for one in args if not isinstance(one, torch.dtype)), **kwargs)
        if dtypes:
            self.unet.to(dtypes[0])
        return self

    def save_pretrained(self, save_directory, **kwargs):
        """As `DiffusionPipeline.save_pretrained`; the code of pipeline and UNet goes along."""
        super().save_pretrained(save_directory, **kwargs)
        unet = getattr(self.unet, "_orig_mod", self.unet)  # of a compiled one
        for owner, folder in ((self, save_directory), (unet, os.path.join(save_directory, "unet"))):
            shutil.copy(inspect.getsourcefile(type(owner)) or "", folder)
        place = os.path.join(save_directory, "model_index.json")
        with open(place, encoding="utf-8") as file:
            index = json.load(file)
        for key, owner in (
            ("_class_name", self),
            ("unet", unet),
        ):  # by the file next to it, not by where it was run from
            index[key] = [type(owner).__module__.split(".")[-1], type(owner).__name__]
        with open(place, "w", encoding="utf-8") as file:
            json.dump(index, file, indent=2, sort_keys=True)

    @torch.no_grad()
    @float32_convolutions()
    def __call__(
        self,
        object_image,
        mask=None,
        theta=30.0,
        phi=90.0,
        size=4.0,
        num_inference_steps=1,
        generator=None,
        latents=None,
        output_type="pil",
        return_dict=True,
        callback_on_step_end=None,
    ):
        """Shadows, each of the size of its picture. One picture with several lights gives one shadow a light, and one
        light serves several pictures.

        Args:
            object_image: a PIL image, an array (H, W, 3 or 4) uint8 or in [0, 1], a tensor (3 or 4, H, W) in [0, 1]; or
                a list of them, or a batch (B, H, W, C) or (B, C, H, W). Any size: it is fitted into the model's square
                without a change of its proportions. What lies outside of the mask does not matter.
            mask: likewise with one channel, (H, W) or (1, H, W), object where it reaches 0.5; None: the object's alpha.
            theta: polar angle of the light, degrees in [0, 45]; 0 is straight above. A number, or one for each.
            phi: azimuth, degrees in [0, 360]; 0 is right, the shadow falls to the left.
            size: side of the square light, scene units in [2, 8]; larger is softer.
            num_inference_steps: calls of the UNet.
            generator: a `torch.Generator` of the noise, or a list with one for each picture.
            latents: the noise itself, (B, 4, h, w) standard normal, in place of `generator`.
            output_type: `pil` (8-bit grey), `np` ((B, H, W, 1) float32 in [0, 1]), `pt` ((B, 1, H, W)), or `latent`
                ((B, 4, h, w)). Pictures of different sizes come as a list.
            return_dict: False gives a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": latents})`; may return
                `{"latents": others}`.

        Raises:
            ValueError: an input is not what it must be.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; give pil, np, pt or latent")
        steps, side = int(num_inference_steps), self.config.image_size
        if steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; give at least 1")
        objects = [object_channels(one) for one in as_list(object_image, channels=3)]
        masks = None if mask is None else [mask_channel(one) for one in as_list(mask, channels=1)]
        pictures, masks, lights = paired(objects, masks, theta, phi, size)
        sizes = [tuple(one.shape[-2:]) for one in pictures]
        fitted = [fit_object(*pair, side) for pair in zip(pictures, masks, strict=True)]
        conditions = self.encode(torch.stack([one for one, _ in fitted]), torch.stack([one for _, one in fitted]))
        embedding = self.unet.embed_light(lights).to(conditions.device)
        noise = self.prepare_latents(len(pictures), generator, latents)
        latents = self.denoise(noise, steps, conditions, embedding, callback_on_step_end)
        images = latents if output_type == "latent" else self.decode(latents, sizes, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare_latents(self, count, generator=None, latents=None):
        """Noise (B, 4, h, w) float32: drawn, or as it was given."""
        side, device = self.config.image_size // DOWNSCALE, self._execution_device
        shape = (count, 4, side, side)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; {shape} are needed")
        return latents.to(device, torch.float32)

    def denoise(self, latents, steps, conditions, embedding, callback=None):
        """Noise (B, 4, h, w) to data (B, 4, h, w), by the scheduler in `steps` calls of the UNet; see `predict`."""
        self.scheduler.set_timesteps(sigmas=[1.0 - step / steps for step in range(steps)], device=latents.device)
        with self.progress_bar(total=steps) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps):
                velocity = self.predict(latents, timestep, conditions, embedding)
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
                if callback is not None:
                    latents = (callback(self, step, timestep, {"latents": latents}) or {}).get("latents", latents)
                progress.update()
        return latents

    def predict(self, latents, timestep, conditions, embedding):
        """The UNet's velocity, data - noise, (B, 4, h, w) float32.

        Args:
            latents: (B, 4, h, w). timestep: scalar, 1000 is noise. conditions: (B, 5, h, w), the object's latents and
                the mask. embedding: (B, 768), `embed_light`.
        """
        dtype = self.unet.dtype
        sample = torch.cat([latents, conditions], dim=1).to(dtype)
        timesteps = timestep.float().expand(len(latents))
        return self.unet(sample, timesteps, None, class_labels=embedding.to(dtype), return_dict=False)[0].float()

    def encode(self, objects, masks):
        """Objects (B, 3, S, S) in [-1, 1], masks (B, 1, S, S) -> latents and the area covered, (B, 5, h, w) float32."""
        objects, masks = objects.to(self._execution_device), masks.to(self._execution_device)
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        given = in_pieces(lambda piece: self.vae.encode(piece, return_dict=False)[0], objects, objects.shape[-1] ** 2)
        return torch.cat([(given - shift) * scale, F.avg_pool2d(masks, DOWNSCALE)], dim=1)

    def decode(self, latents, sizes, output_type):
        """(B, 4, h, w) -> shadows as `__call__` gives them. sizes: (height, width) of each."""
        scale, shift = self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0
        pixels = latents.shape[-1] ** 2 * DOWNSCALE**2
        squares = in_pieces(lambda piece: self.vae.decode(piece / scale + shift).sample[:, :1], latents, pixels)
        squares = ((squares + 1.0) / 2.0).clamp(0.0, 1.0)
        shadows = [unfit(square, *size) for square, size in zip(squares, sizes, strict=True)]
        if output_type == "pt":
            return torch.stack(shadows) if len(set(sizes)) == 1 else shadows
        arrays = [one.permute(1, 2, 0).cpu().numpy() for one in shadows]
        if output_type == "np":
            return np.stack(arrays) if len(set(sizes)) == 1 else arrays
        return [Image.fromarray((one[..., 0] * 255.0).round().astype(np.uint8)) for one in arrays]


def in_float32(vae):
    """The VAE with the weights of its file: rounded to half precision, as a `dtype` has it, they are read again."""
    if vae.dtype == torch.float32:
        return vae
    place = vae.config.get("_name_or_path") or ""
    if not os.path.isdir(place):
        raise ValueError(f"the VAE is {vae.dtype}; load it in float32: dtype={{'vae': torch.float32, ...}}")
    return type(vae).from_pretrained(place, use_safetensors=True).float().to(vae.device)


def in_pieces(function, batch, pixels):
    """`function` of (B, C, ...) float32, some samples at a time. pixels: of one of them."""
    given = [function(piece) for piece in batch.float().split(max(1, MAX_PIXELS // pixels))]
    return torch.cat([one if torch.is_tensor(one) else one.mode() for one in given])  # of a posterior


# Pictures in, at the model's square, and back: threshold the mask, put grey around the object, resize, threshold again.
# Resizing first would mix what lies around the object into its rim.


def as_list(given, channels):
    """One picture, a list of them or a batch -> a list of PIL images, arrays and tensors."""
    if isinstance(given, (list, tuple)):
        return list(given)
    if not isinstance(given, (np.ndarray, torch.Tensor)):
        return [given]
    is_one = given.shape[-1] <= 4 if isinstance(given, np.ndarray) else given.shape[0] == 1  # with its channels
    return list(given) if given.ndim == 4 or (given.ndim == 3 and channels == 1 and not is_one) else [given]


def object_channels(one):
    """A picture as colour (3, H, W) float32 in [-1, 1], transparent parts grey, and alpha (1, H, W) or None."""
    channels = to_channels(one, "object_image", rounds=True)
    if channels.shape[0] not in (1, 2, 3, 4):
        raise ValueError(f"object_image: {channels.shape[0]} channels; give 3, or 4 with alpha")
    split = 1 if channels.shape[0] < 3 else 3
    colour, alpha = channels[:split].expand(3, -1, -1) * 2.0 - 1.0, channels[split:]
    return (colour * alpha, alpha) if len(alpha) else (colour, None)


def mask_channel(one):
    """A mask as (1, H, W) float32 in {0, 1}: of its grey value; of its alpha where some of it is transparent."""
    channels = to_channels(one, "mask", rounds=False)
    grey, alpha = (channels[:-1], channels[-1:]) if channels.shape[0] in (2, 4) else (channels, None)
    if grey.shape[0] not in (1, 3) or float((grey.amax(dim=0) - grey.amin(dim=0)).max()) > 8 / 255:
        raise ValueError("mask: coloured; give a grey one, white = object")
    by_grey = grey.mean(dim=0, keepdim=True) >= 0.5
    if alpha is None or bool((alpha == 1).all()):
        return by_grey.float()
    visible = grey[:, alpha[0] > 0]
    if visible.numel() and visible.amin() < visible.amax() and not torch.equal(by_grey & (alpha > 0), alpha >= 0.5):
        raise ValueError("mask: grey values and alpha show different masks; give a grey one without alpha")
    return (alpha >= 0.5).float()


def to_channels(one, name, rounds):
    """A picture as (C, H, W) float32 in [0, 1] on the CPU. rounds: floats to 8 bits, as a picture file has them."""
    if isinstance(one, Image.Image):
        channels = pil_channels(ImageOps.exif_transpose(one))
    elif isinstance(one, (np.ndarray, torch.Tensor)):
        channels = torch.as_tensor(one).cpu()
        if channels.ndim == 3 and (isinstance(one, np.ndarray) or channels.shape[0] > 4):
            channels = channels.permute(2, 0, 1)
        channels = channels[None] if channels.ndim == 2 else channels
        if channels.ndim != 3:
            raise ValueError(f"{name}: shape {tuple(one.shape)} is not one picture's")
        is_whole, top = not channels.is_floating_point(), 1 if channels.dtype == torch.bool else 255
        channels = channels.float() / top if is_whole else channels.float()
        if not bool(((channels >= 0) & (channels <= 1)).all()):  # NaN fails, too
            raise ValueError(f"{name}: values outside of [0, 1]; give floats in [0, 1] or uint8")
        channels = (channels * 255.0).round() / 255.0 if rounds and not is_whole else channels
    else:
        raise ValueError(f"{name}: {type(one).__name__}; give a PIL image, an array, a tensor, or a list of them")
    if min(channels.shape[1:]) < DOWNSCALE:
        raise ValueError(f"{name}: {channels.shape[2]} x {channels.shape[1]} pixels; each side needs at least 8")
    return channels


def pil_channels(image):
    """(1 .. 4, H, W) float32 in [0, 1]; an alpha comes last."""
    if image.mode.startswith("I"):  # 16-bit grey
        return torch.from_numpy((np.asarray(image).astype(np.int64) / 65535.0).astype(np.float32))[None]
    mode = ("L" if image.mode in ("1", "L", "LA") else "RGB") + ("A" if image.has_transparency_data else "")
    levels = np.atleast_3d(np.asarray(image.convert(mode)))
    return torch.from_numpy(levels.astype(np.float32) / np.float32(255)).permute(2, 0, 1)


def paired(objects, masks, theta, phi, size):
    """B pictures (3, H, W), B masks (1, H, W) and lights (B, 3) float64; what was given once serves all."""
    if masks is None:
        if any(alpha is None or bool((alpha == 1).all()) for _, alpha in objects):
            raise ValueError("no mask was given, and a picture has no transparent part; give a mask")
        masks = [(alpha >= 0.5).float() for _, alpha in objects]
    values = [np.atleast_1d(np.asarray(one, dtype=np.float32)).tolist() for one in (theta, phi, size)]
    given = {"object_image": [colour for colour, _ in objects], "mask": masks, **dict(zip(LIGHT, values, strict=True))}
    count = max(map(len, given.values()))
    for name, ones in given.items():
        if len(ones) not in (1, count):
            raise ValueError(f"{name}: {len(ones)} given, others {count}; give one, or one for each")
        bad = [value for value in ones if name in LIGHT and not LIGHT[name][0] <= value <= LIGHT[name][1]]  # NaN, too
        if bad:
            raise ValueError(f"{name} = {bad[0]} is outside of {list(LIGHT[name])}")
    pictures, masks, *columns = [ones * (count if len(ones) == 1 else 1) for ones in given.values()]
    for picture, mask in zip(pictures, masks, strict=True):
        if picture.shape[1:] != mask.shape[1:]:
            sizes = [f"{one.shape[2]} x {one.shape[1]}" for one in (picture, mask)]
            raise ValueError(f"object_image has {sizes[0]} pixels and its mask {sizes[1]}; give them in one size")
        if not mask.any() or mask.all():
            raise ValueError(f"the mask marks {'every' if mask.any() else 'no'} pixel as object; mark the object alone")
    return pictures, masks, torch.tensor(columns, dtype=torch.float64).T


def fit_object(picture, mask, side):
    """(3, H, W) and (1, H, W) -> (3, S, S), grey wherever the mask is 0, and (1, S, S) in {0, 1}."""
    small_mask = (fit_square(mask, side) >= 0.5).float()
    if not small_mask.any():
        raise ValueError(f"nothing is left of the mask at {side} x {side} pixels; crop the picture to the object")
    small = fit_square(torch.where(mask > 0, picture, 0.0), side)
    return torch.where(small_mask > 0, small, 0.0), small_mask


def fit_square(image, side):
    """(C, H, W) -> (C, S, S): the longer side becomes S, the proportions stay, the rest is 0 on both sides."""
    height, width = inner_size(image.shape[-2], image.shape[-1], side)
    rows, columns = side - height, side - width
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(resized(image, height, width), padding)


def unfit(square, height, width):
    """(C, S, S) -> (C, H, W): the borders of `fit_square` off, and back at the picture's size."""
    rows, columns = inner_size(height, width, square.shape[-1])
    top, left = (square.shape[-1] - rows) // 2, (square.shape[-1] - columns) // 2
    return resized(square[..., top : top + rows, left : left + columns], height, width)


def inner_size(height, width, side):
    """Rows and columns that a picture takes of its square."""
    longer = max(height, width)
    return max(round(height * side / longer), 1), max(round(width * side / longer), 1)


def resized(image, height, width):
    """(C, H, W) at another size, bilinear and antialiased; values stay within those of the image."""
    if tuple(image.shape[-2:]) != (height, width):
        small = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
        return small.clamp(image.amin(), image.amax())
    return image
