"""A scene in Mitsuba, seen twice by the same rays: with its object, and without the object and its shadow.

Two square lights, both white, direct light alone: with the same samples in each pixel, a pixel changes where a ray
meets the object, or a shadow ray does, and nowhere else. So what the object changes is known to the bit.

Linear light is encoded as sRGB. Lengths in scene units, angles in degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shadowlab.tasks.albedo.render import BLOCK_SIZE, Picture, encoded, ground_surface, sensor, unit_irradiance
from shadowlab.tasks.shadow.render import Part, SceneObject, light_frame, random_generator

_GROUND = 30.0
"""Half of its side: no ray goes past it."""
_MARGIN = 1
"""Pixels by which the mask is wider than what changes."""


@dataclass(frozen=True)
class TwoLights:
    """Where they stand, and how bright a white ground at the origin is under each; both shine white."""

    key: tuple[float, float, float]
    """theta, phi and size of the main light."""
    fill: tuple[float, float, float]
    key_level: float
    fill_level: float


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """Pictures of one scene under one light."""

    whole: NDArray[np.uint8]
    """(S, S, 3) sRGB, with the object."""
    empty: NDArray[np.uint8]
    """(S, S, 3) sRGB, without it. Outside the mask it is `whole`, bit for bit."""
    mask: NDArray[np.uint8]
    """(S, S): 255 where the two differ, and a pixel around it."""


def choose_lights(seed: int, object_index: int, light_index: int) -> TwoLights:
    """A pure function of its arguments: a hard or soft key light, and a large fill light across from it."""
    rng = random_generator(seed, "editing/light", object_index, light_index)
    phi, level, share = rng.uniform(0, 360), rng.uniform(0.5, 0.95), rng.uniform(0.2, 0.45)
    key = (round(float(rng.uniform(10, 45)), 1), round(float(phi), 1), round(float(rng.uniform(1, 4)), 2))
    fill = (round(float(rng.uniform(5, 30)), 1), round(float((phi + rng.uniform(120, 240)) % 360), 1), 6.0)
    return TwoLights(key, fill, float(level * (1 - share)), float(level * share))


class RemovalScene:
    """An object on the ground, uploaded to Mitsuba once and rendered under many lights.

    Args:
        mi: from `mitsuba()`.
        parts: they rest on z = 0.
        ground: sRGB picture that repeats.
    """

    def __init__(self, mi: ModuleType, parts: Sequence[Part], ground: Picture) -> None:
        self._mi, self._meshes = mi, SceneObject(mi, parts).meshes
        self._ground = ground_surface(mi, ground, _GROUND)

    def render(self, lights: TwoLights, image_size: int, samples_per_pixel: int, seed: int) -> Counterfactual:
        """seed: of Mitsuba's samples, the same for both pictures."""
        whole, empty = (
            encoded(self._seen(lights, image_size, samples_per_pixel, seed, meshes)) for meshes in (self._meshes, {})
        )
        changed = np.pad((whole != empty).any(axis=2), _MARGIN)
        side = 2 * _MARGIN + 1
        near = np.lib.stride_tricks.sliding_window_view(changed, (side, side)).any(axis=(2, 3))
        return Counterfactual(whole, empty, np.where(near, 255, 0).astype(np.uint8))

    def _seen(
        self, lights: TwoLights, image_size: int, samples_per_pixel: int, seed: int, meshes: dict[str, Any]
    ) -> NDArray[np.float64]:
        """(S, S, 3) linear, under both lights.

        Each is rendered alone: Mitsuba puts the lights of a scene in an order of its own, and by it a sample would take
        the one in one picture and the other in the next.
        """
        both = ((lights.key, lights.key_level), (lights.fill, lights.fill_level))
        return sum(
            (
                self._under(self._light(*one), image_size, samples_per_pixel, seed + i, meshes)
                for i, one in enumerate(both)
            ),
            start=np.zeros((image_size, image_size, 3)),
        )

    def _under(
        self, light: dict[str, Any], image_size: int, samples_per_pixel: int, seed: int, meshes: dict[str, Any]
    ) -> NDArray[np.float64]:
        """(S, S, 3) linear."""
        mi = self._mi
        scene = mi.load_dict(
            {
                "type": "scene",
                "integrator": {"type": "path", "max_depth": 2, "hide_emitters": True, "block_size": BLOCK_SIZE},
                "sensor": sensor(mi, image_size, samples_per_pixel),
                "ground": self._ground,
                "light": light,
                **meshes,
            }
        )
        return np.array(mi.render(scene, seed=seed), dtype=np.float64)[..., :3]

    def _light(self, place: tuple[float, float, float], level: float) -> dict[str, Any]:
        theta, phi, size = place
        radiance = level * np.pi / unit_irradiance(theta, phi, size)
        return {
            "type": "rectangle",
            "to_world": light_frame(self._mi, theta, phi, size),
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": [radiance] * 3}},
        }
