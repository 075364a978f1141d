"""A scene in Mitsuba, seen twice by the same rays: its beauty, and the reflectance of what each ray meets.

The second comes from Mitsuba's `aov` integrator, with the same samples in each pixel: it is exact, and says nothing of
light, shadow or what one surface throws on another. All surfaces are matt, so their reflectance is their albedo.

Linear light is encoded as sRGB; nothing else is done to it, so that the beauty is albedo times light wherever it does
not reach 1. Lengths in scene units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shadowlab.tasks.albedo.render.lighting import Lighting
from shadowlab.tasks.albedo.render.patterns import Picture
from shadowlab.tasks.shadow.render import Part, SceneObject, light_frame, linear_from_srgb

NOTHING = 128
"""sRGB level of both pictures where there is no surface; those pixels are not valid."""
BOUNCES = 3
"""Of light at most, the last one to the camera among them."""
_CAMERA, _TARGET, _FIELD_OF_VIEW = (0.0, -7.2, 4.6), (0.0, 0.0, 0.45), 23.0
BLOCK_SIZE = 16  # fixed: Mitsuba's own choice, and with it the noise, depends on the number of threads
_COVERED = 0.999  # share of a pixel that a surface covers, to be valid
_GROUND_TILE = 4.0  # scene units that the ground's picture spans


@dataclass(frozen=True, eq=False)
class Rendered:
    """Pictures of one scene under one light."""

    beauty: NDArray[np.uint8]
    """(S, S, 3) sRGB."""
    albedo: NDArray[np.uint8]
    """(S, S, 3) sRGB."""
    valid: NDArray[np.uint8]
    """(S, S): 255 where a surface covers the pixel, 0 elsewhere."""


class AlbedoScene:
    """An object on a square ground, uploaded to Mitsuba once and rendered under many lights.

    Args:
        mi: from `mitsuba()`.
        parts: they rest on z = 0.
        ground: sRGB picture that repeats.
        radius: half of the ground's side.
    """

    def __init__(self, mi: ModuleType, parts: Sequence[Part], ground: Picture, radius: float) -> None:
        self._mi, self._meshes = mi, SceneObject(mi, parts).meshes
        self._ground = ground_surface(mi, ground, radius)

    def render(self, light: Lighting, image_size: int, samples_per_pixel: int, seed: int) -> Rendered:
        """seed: of Mitsuba's samples. The albedo of a pixel that sees one surface does not depend on the light;
        where it sees several, the samples, and so their shares, do."""
        mi = self._mi
        path = {"type": "path", "max_depth": BOUNCES, "hide_emitters": True, "block_size": BLOCK_SIZE}
        scene = mi.load_dict(
            {
                "type": "scene",
                "integrator": {"type": "aov", "aovs": "albedo:albedo", "block_size": BLOCK_SIZE, "nested": path},
                "sensor": sensor(mi, image_size, samples_per_pixel),
                "ground": self._ground,
                "light": {
                    "type": "rectangle",
                    "to_world": light_frame(mi, light.theta, light.phi, light.size),
                    "emitter": {"type": "area", "radiance": {"type": "rgb", "value": light.radiance}},
                },
                "sky": {"type": "constant", "radiance": {"type": "rgb", "value": list(light.sky)}},
                **self._meshes,
            }
        )
        seen = np.array(mi.render(scene, seed=seed), dtype=np.float64)
        alpha = np.clip(seen[..., 3:4], 0, 1)
        nothing = (1 - alpha) * linear_from_srgb(np.array(NOTHING / 255))
        return Rendered(
            beauty=encoded(seen[..., :3] + nothing),
            albedo=encoded(seen[..., 4:7] + nothing),
            valid=np.where(alpha[..., 0] >= _COVERED, 255, 0).astype(np.uint8),
        )


def ground_surface(mi: ModuleType, picture: Picture, radius: float) -> dict[str, Any]:
    """A square on z = 0 that shows a picture again and again. radius: half of its side."""
    bitmap = mi.Bitmap(np.ascontiguousarray(linear_from_srgb(picture / 255), dtype=np.float32))
    tiles = mi.ScalarTransform3f().scale(2 * radius / _GROUND_TILE)
    texture = {"type": "bitmap", "bitmap": bitmap, "raw": True, "to_uv": tiles}
    return {
        "type": "rectangle",
        "to_world": mi.ScalarTransform4f().scale(radius),
        "bsdf": {"type": "twosided", "surface": {"type": "diffuse", "reflectance": texture}},
    }


def sensor(mi: ModuleType, image_size: int, samples_per_pixel: int) -> dict[str, Any]:
    """The camera: above the ground, in front of the origin, which it looks at."""
    look = mi.ScalarTransform4f().look_at(origin=list(_CAMERA), target=list(_TARGET), up=[0, 0, 1])
    return {
        "type": "perspective",
        "fov": _FIELD_OF_VIEW,
        "to_world": look,
        "film": {
            "type": "hdrfilm",
            "width": image_size,
            "height": image_size,
            "rfilter": {"type": "box"},  # no pixel reads another's samples
            "pixel_format": "rgba",
            "component_format": "float32",
        },
        "sampler": {"type": "multijitter", "sample_count": samples_per_pixel},
    }


def encoded(linear: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Linear light (...) to sRGB levels; what is brighter than 1 is 255."""
    light = np.clip(linear, 0, 1)
    return np.round(srgb_from_linear(light) * 255).astype(np.uint8)


def srgb_from_linear(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB's transfer function (IEC 61966-2-1), [0, 1] -> [0, 1]."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
