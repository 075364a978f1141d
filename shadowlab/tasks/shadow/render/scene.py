"""The paper's scene in Mitsuba: an object on the ground plane z = 0, one square area light, a fixed camera.

Two pictures are taken, both from the same camera:

- the object alone, under fixed neutral lighting that says nothing about the light of the sample;
- the shadow on the ground, as if the object were invisible to the camera. For that the camera is mirrored at the
  ground and looks up through it: the ground is a diffusely transmitting sheet, so each of its points shows the
  light that falls on it from above, and the object behind it is never seen. The mirror image is flipped back.

Shadow = 1 - E_with / E_without, direct light only. Both renders use the same random numbers and, with a box filter,
no pixel reads another's samples; so the ratio is exactly 1 where no sample is occluded.

Lengths in scene units, angles in degrees.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shadowlab.errors import MissingDependencyError
from shadowlab.tasks.shadow.light import light_position
from shadowlab.tasks.shadow.render import camera
from shadowlab.tasks.shadow.render.camera import light_axes, shadow_window
from shadowlab.tasks.shadow.render.normals import Corners, crease_corners
from shadowlab.tasks.shadow.render.shapes import Part, linear_from_srgb

BACKGROUND = 128  # grey level around the object in its picture
# Objects float by this much, so that the mirrored camera meets the sheet before a face that rests on it.
_LIFT = np.array([0.0, 0.0, 1e-3])
_GROUND_HALF_SIDE = 100.0
_BLOCK_SIZE = 16  # fixed: Mitsuba's own choice, and with it the noise, depends on the number of threads
_FIXED_SEED = 1


@contextmanager
def mitsuba(num_threads: int | None = None) -> Iterator[ModuleType]:
    """Mitsuba with its `scalar_rgb` variant (no GPU, no LLVM), and the variant set before restored at the end.

    Args:
        num_threads: that it computes with; all cores where not given.

    Raises:
        MissingDependencyError: Mitsuba is not installed, or is a build without that variant.
    """
    try:
        import mitsuba as mi

        before = mi.variant()
        mi.set_variant("scalar_rgb")
        if num_threads is not None:
            import drjit

            drjit.set_thread_count(num_threads)
    except ImportError as error:  # also where a build lacks the variant
        raise MissingDependencyError("rendering needs Mitsuba 3: pip install mitsuba trimesh") from error
    level = mi.log_level()
    mi.set_log_level(mi.LogLevel.Error)  # the sampler remarks on every picture that it rounds the sample count up
    try:
        yield mi
    finally:
        mi.set_log_level(level)
        if before is not None:
            mi.set_variant(before)


def _sensor(
    mi: ModuleType, image_size: int, samples_per_pixel: int, mirrored: bool, window: tuple[int, int, int, int]
) -> dict[str, Any]:
    """The camera with a film that covers only `window` (left, top, right, bottom) of its picture."""
    left, top, right, bottom = window
    x, y, z = camera.camera_origin()
    side = -1 if mirrored else 1
    look = mi.ScalarTransform4f().look_at(origin=[x, y, side * z], target=[0, 0, 0], up=[0, 0, 1])
    return {
        "type": "perspective",
        "fov": camera.FIELD_OF_VIEW,
        "to_world": look,
        "film": {
            "type": "hdrfilm",
            "width": image_size,
            "height": image_size,
            "crop_offset_x": left,
            "crop_offset_y": top,
            "crop_width": right - left,
            "crop_height": bottom - top,
            "rfilter": {"type": "box"},
            "pixel_format": "luminance" if mirrored else "rgba",
            "component_format": "float32",
        },
        "sampler": {"type": "multijitter", "sample_count": samples_per_pixel},
    }


def _reflectance(mi: ModuleType, part: Part) -> dict[str, Any]:
    if part.texture is not None:
        linear = linear_from_srgb(part.texture / 255) * np.asarray(part.color)
        bitmap = mi.Bitmap(np.ascontiguousarray(linear, dtype=np.float32))
        return {"type": "bitmap", "bitmap": bitmap, "raw": True}
    if part.vertex_colors is not None:
        return {"type": "mesh_attribute", "name": "vertex_color"}
    return {"type": "rgb", "value": list(part.color)}


def _srgb_from_linear(value: NDArray[np.float64]) -> NDArray[np.float64]:
    value = np.clip(value, 0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


class SceneObject:
    """An object uploaded to Mitsuba once and rendered under many lights.

    Attributes:
        meshes: name -> mesh of Mitsuba, with its surface; it floats by a thousandth of a unit.
    """

    def __init__(self, mi: ModuleType, parts: Sequence[Part]) -> None:
        """`parts` rest on z = 0 (see `placement.rest_on_ground`); `mi` comes from `mitsuba()`."""
        self._mi = mi
        surfaces = [(part, crease_corners(part)) for part in parts]
        solid = [(part, corners) for part, corners in surfaces if len(corners.positions)]
        self._vertices = np.vstack([corners.positions for _, corners in solid]) + _LIFT
        self.meshes = {f"part{k}": self._mesh(f"part{k}", *surface) for k, surface in enumerate(solid)}

    def _mesh(self, name: str, part: Part, corners: Corners) -> Any:
        mi = self._mi
        properties = mi.Properties()
        properties["mesh_bsdf"] = mi.load_dict(
            {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": _reflectance(mi, part)}}
        )
        count = len(corners.positions)
        mesh = mi.Mesh(
            name,
            count,
            count // 3,
            has_vertex_normals=True,
            has_vertex_texcoords=corners.uv is not None,
            props=properties,
        )
        if corners.colors is not None:
            mesh.add_attribute("vertex_color", 3, corners.colors.ravel().astype(np.float32))
        values = mi.traverse(mesh)
        values["vertex_positions"] = (corners.positions + _LIFT).ravel().astype(np.float32)
        values["vertex_normals"] = corners.normals.ravel().astype(np.float32)
        values["faces"] = np.arange(count, dtype=np.uint32)
        if corners.uv is not None:
            downwards = corners.uv * (1, -1) + (0, 1)  # Mitsuba's bitmaps begin at the top
            values["vertex_texcoords"] = downwards.ravel().astype(np.float32)
        values.update()
        return mesh

    def render_object(self, image_size: int, samples_per_pixel: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The object alone: RGB (image_size, image_size, 3) on a constant background, and its coverage as a grey mask.

        Lighting: a constant grey sky and a soft key light next to the camera, the same for every object and light.
        """
        mi = self._mi
        key = mi.ScalarTransform4f().look_at(origin=[-3, -7, 7], target=[0, 0, 0.5], up=[0, 0, 1]).scale(2.5)
        scene = mi.load_dict(
            {
                "type": "scene",
                "integrator": {"type": "path", "max_depth": 4, "hide_emitters": True, "block_size": _BLOCK_SIZE},
                "sensor": _sensor(mi, image_size, samples_per_pixel, False, (0, 0, image_size, image_size)),
                "sky": {"type": "constant", "radiance": {"type": "rgb", "value": 0.45}},
                "key": {
                    "type": "rectangle",
                    "to_world": key,
                    "emitter": {"type": "area", "radiance": {"type": "rgb", "value": 7.0}},
                },
                **self.meshes,
            }
        )
        rgba = np.array(mi.render(scene, seed=_FIXED_SEED), dtype=np.float64)
        alpha = np.clip(rgba[..., 3:], 0, 1)
        surface = _srgb_from_linear(rgba[..., :3] / np.maximum(alpha, 1e-6))
        picture = surface * alpha + BACKGROUND / 255 * (1 - alpha)
        return _to_bytes(picture), _to_bytes(alpha[..., 0])

    def render_shadow(
        self, theta: float, phi: float, size: float, image_size: int, samples_per_pixel: int, seed: int
    ) -> NDArray[np.uint8]:
        """The object's shadow on the ground, (image_size, image_size): 255 full shadow, 0 nothing occluded."""
        left, top, right, bottom = shadow_window(self._vertices, theta, phi, size, image_size)
        picture = np.zeros((image_size, image_size), dtype=np.uint8)
        if left < right and top < bottom:
            mirrored = (left, image_size - bottom, right, image_size - top)
            sensor = _sensor(self._mi, image_size, samples_per_pixel, True, mirrored)
            with_object = self._irradiance(theta, phi, size, sensor, seed, self.meshes)
            without = self._irradiance(theta, phi, size, sensor, seed, {})
            ratio = np.divide(with_object, without, out=np.ones_like(without), where=without > 0)
            picture[top:bottom, left:right] = _to_bytes(1 - ratio)
        return picture

    def _irradiance(
        self, theta: float, phi: float, size: float, sensor: dict[str, Any], seed: int, meshes: dict[str, Any]
    ) -> NDArray[np.float64]:
        """Direct light on the ground at each pixel of the unmirrored camera, in arbitrary units."""
        mi = self._mi
        scene = mi.load_dict(
            {
                "type": "scene",
                "integrator": {
                    "type": "direct",
                    "emitter_samples": 1,
                    "bsdf_samples": 0,
                    "hide_emitters": True,
                    "block_size": _BLOCK_SIZE,
                },
                "sensor": sensor,
                "ground": {
                    "type": "rectangle",
                    "to_world": mi.ScalarTransform4f().scale(_GROUND_HALF_SIDE),
                    "bsdf": {"type": "principledthin", "diff_trans": 2.0, "spec_trans": 0.0, "roughness": 1.0},
                },
                "light": {
                    "type": "rectangle",
                    "to_world": light_frame(mi, theta, phi, size),
                    "emitter": {"type": "area", "radiance": {"type": "rgb", "value": 1.0}},
                },
                **meshes,
            }
        )
        upside_down = np.array(mi.render(scene, seed=seed), dtype=np.float64)
        return upside_down[::-1, :, 0]


def light_frame(mi: ModuleType, theta: float, phi: float, size: float) -> Any:
    """Places Mitsuba's unit rectangle (side 2, facing +z) as the light, facing the origin."""
    position = np.array(light_position(theta, phi))
    along_phi, along_theta = light_axes(theta, phi)
    frame = np.eye(4)
    frame[:3, 0], frame[:3, 1] = along_phi * size / 2, along_theta * size / 2
    frame[:3, 2], frame[:3, 3] = -position / np.linalg.norm(position), position
    return mi.ScalarTransform4f(frame)


def _to_bytes(value: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.round(np.clip(value, 0, 1) * 255).astype(np.uint8)
