"""Pictures of any size into a model's square and back, for the pipelines next to this file.

Legend: C channels, H W pixels of a picture, S pixels of the model's square, B batch, h w latents (S / 8).
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps


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


def white(mask, purpose):
    """Where a mask reaches 0.5, (1, H, W) float32 in {0, 1}. purpose: what is white in it, for a message."""
    found = (channels(mask, "mask", 1) >= 0.5).float()
    if not found.any():
        raise ValueError(f"the mask is empty; paint white {purpose}")
    return found


def fit_square(image, side, fill):
    """(C, H, W) -> (C, S, S): the longer side becomes S, the proportions stay, the rest is `fill` on both sides."""
    height, width = inner_size(image.shape[-2], image.shape[-1], side)
    rows, columns = side - height, side - width
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(resized(image, height, width).clamp(image.min(), image.max()), padding, value=fill)


def unfit_square(square, height, width):
    """(C, S, S) -> (C, H, W): the inner part of what `fit_square` gives of a picture of this size, at its size."""
    rows, columns = inner_size(height, width, square.shape[-1])
    top, left = (square.shape[-1] - rows) // 2, (square.shape[-1] - columns) // 2
    inner = square[:, top : top + rows, left : left + columns]
    return resized(inner, height, width).clamp(inner.min(), inner.max())


def inner_size(height, width, side):
    """Rows and columns that a picture takes of its square."""
    longer = max(height, width)
    return max(round(height * side / longer), 1), max(round(width * side / longer), 1)


def resized(image, height, width):
    """(C, H, W), bilinear; antialiased where it becomes smaller."""
    if tuple(image.shape[-2:]) == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def latents_of(vae, pictures):
    """(B, 3, S, S) in [-1, 1] -> scaled latents (B, 4, h, w), by a VAE with or without a posterior."""
    given = vae.encode(pictures)
    unscaled = given.latent_dist.mode() if hasattr(given, "latent_dist") else given.latents
    return (unscaled - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def square_of(vae, latents):
    """Scaled latents (1, 4, h, w) -> the picture (3, S, S) in [0, 1], on the CPU."""
    decoded = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample[0]
    return ((decoded + 1.0) / 2.0).clamp(0.0, 1.0).cpu()


def as_images(picture, output_type):
    """(3, H, W) in [0, 1] as diffusers' pipelines give it. output_type: `pil` or `np`, (1, H, W, 3) float32."""
    image = picture.permute(1, 2, 0).numpy()
    return image[None] if output_type == "np" else [Image.fromarray((image * 255).round().astype(np.uint8))]
