"""Load an exported pipeline, cast shadows, and put object and shadow on a background.

Needs diffusers and torch; shadowlab need not be installed. ComfyUI's pictures are (B, H, W, 3) and its masks (B, H, W),
float32 in [0, 1] on the CPU. Legend: B batch, H W pixels.
"""

import torch
from diffusers import DiffusionPipeline

CATEGORY = "shadowlab"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoadShadowPipeline:
    """A folder of `shadowlab export --to diffusers`, on ComfyUI's device."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("SHADOW_PIPELINE",), ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  # ComfyUI's name
        return {
            "required": {
                "folder": ("STRING", {"default": "", "tooltip": "Written by shadowlab export --to diffusers."}),
                "dtype": (list(DTYPES), {"tooltip": "Of the UNet; the VAE stays in float32."}),
                "trust_remote_code": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Run the folder's pipeline.py and unet/shadow_unet.py. Read them first.",
                    },
                ),
            }
        }

    def load(self, folder, dtype, trust_remote_code):
        """-> (pipeline,)"""
        if not trust_remote_code:
            raise ValueError(f"{folder}: its pipeline.py and unet/shadow_unet.py run here; turn on trust_remote_code")
        pipeline = DiffusionPipeline.from_pretrained(folder.strip(), trust_remote_code=True, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return (pipeline.to(comfy_device(), DTYPES[dtype]),)


class CastShadow:
    """The shadows of objects under a light: as masks, and as pictures to look at."""

    CATEGORY, FUNCTION = CATEGORY, "cast"
    RETURN_TYPES, RETURN_NAMES = ("MASK", "IMAGE"), ("shadow", "picture")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "pipeline": ("SHADOW_PIPELINE",),
                "image": ("IMAGE",),
                "mask": ("MASK", {"tooltip": "White = object. That of Load Image is the other way round."}),
                "mask_is_background": ("BOOLEAN", {"default": False, "tooltip": "On for the mask of Load Image."}),
                "theta": (
                    "FLOAT",
                    {"default": 30.0, "min": 0.0, "max": 45.0, "step": 0.5, "tooltip": "0: from above."},
                ),
                "phi": (
                    "FLOAT",
                    {"default": 90.0, "min": 0.0, "max": 360.0, "step": 1.0, "tooltip": "0: light at right."},
                ),
                "size": (
                    "FLOAT",
                    {"default": 4.0, "min": 2.0, "max": 8.0, "step": 0.1, "tooltip": "Larger is softer."},
                ),
                "steps": ("INT", {"default": 1, "min": 1, "max": 50}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            }
        }

    def cast(self, pipeline, image, mask, mask_is_background, theta, phi, size, steps, seed):
        """image (B, H, W, 3), mask (1 or B, H, W) -> (shadow (B, H, W), picture (B, H, W, 3)); the same noise for each,
        as `shadowlab generate --seed` draws it."""
        mask = mask[None] if mask.ndim == 2 else mask
        count = max(len(image), len(mask))
        shadow = pipeline(
            [one.permute(2, 0, 1) for one in image],
            [1.0 - one[None] if mask_is_background else one[None] for one in mask],
            theta=theta,
            phi=phi,
            size=size,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for _ in range(count)],
            output_type="pt",
        ).images.cpu()
        return shadow[:, 0], shadow.permute(0, 2, 3, 1).expand(-1, -1, -1, 3)


class CompositeShadow:
    """The background, darkened where the shadow falls, and the object on it."""

    CATEGORY, FUNCTION = CATEGORY, "composite"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "background": ("IMAGE",),
                "image": ("IMAGE", {"tooltip": "The object."}),
                "mask": ("MASK", {"tooltip": "White = object; soft values blend."}),
                "mask_is_background": ("BOOLEAN", {"default": False, "tooltip": "On for the mask of Load Image."}),
                "shadow": ("MASK", {"tooltip": "Of the node Cast Shadow."}),
                "intensity": ("FLOAT", {"default": 0.7, "min": 0.0, "max": 1.0, "step": 0.05}),
            }
        }

    def composite(self, background, image, mask, mask_is_background, shadow, intensity):
        """background, image (B, H, W, 3), mask, shadow (B, H, W); of each one or B -> ((B, H, W, 3),)"""
        sizes = {name: tuple(one.shape[1:3]) for name, one in (("background", background), ("image", image))}
        sizes |= {name: tuple(one.shape[-2:]) for name, one in (("mask", mask), ("shadow", shadow))}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"sizes differ, (height, width): {sizes}; scale them to one")
        matte = (1.0 - mask if mask_is_background else mask).reshape(-1, *mask.shape[-2:], 1)
        ground = background * (1.0 - intensity * shadow[..., None])
        return (ground * (1.0 - matte) + image * matte,)


def comfy_device():
    """ComfyUI's device; outside of it, a GPU where there is one."""
    try:
        from comfy.model_management import get_torch_device
    except ImportError:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return get_torch_device()


NODE_CLASS_MAPPINGS = {
    "ShadowlabLoadPipeline": LoadShadowPipeline,
    "ShadowlabCastShadow": CastShadow,
    "ShadowlabComposite": CompositeShadow,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ShadowlabLoadPipeline": "Load Shadow Pipeline",
    "ShadowlabCastShadow": "Cast Shadow",
    "ShadowlabComposite": "Composite Shadow",
}
