"""Lights of any colour and softness, and how bright they are: a pure function of (seed, object, light)."""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowlab.tasks.shadow import light_position
from shadowlab.tasks.shadow.render import light_axes, random_generator

_QUADRATURE = 16  # points along a side of the light
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear sRGB


@dataclass(frozen=True)
class Lighting:
    """A square light on a sphere around the origin, and a sky."""

    theta: float
    """Polar angle of the square light, degrees. phi: its azimuth."""
    phi: float
    size: float
    """Its side, scene units."""
    key: tuple[float, float, float]
    """Linear colour of what it gives a white ground at the origin; its luminance is its share of the brightness."""
    sky: tuple[float, float, float]
    """Likewise of the sky, which is the same from everywhere."""

    @property
    def radiance(self) -> list[float]:
        """Linear RGB radiance of the square light."""
        return (np.array(self.key) * np.pi / unit_irradiance(self.theta, self.phi, self.size)).tolist()


def unit_irradiance(theta: float, phi: float, size: float) -> float:
    """What a square light of radiance 1 gives a level ground at the origin that nothing stands on: the integral of
    both cosines over the squared distance."""
    centre = np.array(light_position(theta, phi))
    along_phi, along_theta = light_axes(theta, phi)
    places = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE - 0.5
    i, j = np.meshgrid(places * size, places * size, indexing="ij")
    points = centre + i[..., None] * along_phi + j[..., None] * along_theta
    distance = np.linalg.norm(points, axis=-1)
    facing = (points @ (centre / np.linalg.norm(centre))) / distance
    return float((np.maximum(points[..., 2], 0) / distance * facing / distance**2).mean() * size**2)


def choose_lighting(seed: int, object_index: int, light_index: int) -> Lighting:
    """A white ground at the origin is 0.35 to 1 bright, of which the sky gives 10 to 40 %; both have a colour."""
    rng = random_generator(seed, "albedo/light", object_index, light_index)
    level, share = rng.uniform(0.35, 1.0), rng.uniform(0.1, 0.4)
    hue = rng.uniform()
    key = _tint(hue, rng.uniform(0, 0.7)) * level * (1 - share)
    sky = _tint(hue + rng.uniform(0.3, 0.7), rng.uniform(0, 0.6)) * level * share
    red, green, blue = key.tolist()
    return Lighting(
        theta=round(float(rng.uniform(8, 55)), 1),
        phi=round(float(rng.uniform(0, 360)), 1),
        size=round(float(rng.uniform(1, 5)), 2),
        key=(red, green, blue),
        sky=(float(sky[0]), float(sky[1]), float(sky[2])),
    )


def _tint(hue: float, saturation: float) -> NDArray[np.float64]:
    """A linear colour (3,) of luminance 1."""
    colour = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, 1.0))
    return colour / float(colour @ _LUMINANCE)
