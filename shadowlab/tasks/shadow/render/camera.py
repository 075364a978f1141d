"""The fixed camera, and which part of its picture a shadow can fall on.

Camera coordinates as in Mitsuba's perspective sensor: square picture, pixel (0, 0) at the top left. Lengths in scene
units, angles in degrees.
"""

import math

import numpy as np

from shadowlab.tasks.shadow.light import light_position
from shadowlab.tasks.shadow.render.shapes import Array

DISTANCE = 8.5
ELEVATION = 32.0
FIELD_OF_VIEW = 30.0


def camera_origin() -> tuple[float, float, float]:
    """Above the negative y axis, ELEVATION over the ground; the camera looks at the origin."""
    elevation = math.radians(ELEVATION)
    return 0.0, -DISTANCE * math.cos(elevation), DISTANCE * math.sin(elevation)


def project(points: Array, image_size: int) -> tuple[Array, Array]:
    """Where `points` (N, 3) appear: (N, 2) column and row in pixels, and their depth (N,) before the camera.

    A column or row means nothing where the depth is not positive.
    """
    origin = np.array(camera_origin())
    forward = -origin / np.linalg.norm(origin)
    right = np.array((1.0, 0.0, 0.0))
    up = np.cross(right, forward)
    depth = (points - origin) @ forward
    focal = image_size / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        column = image_size / 2 + focal * ((points - origin) @ right) / depth
        row = image_size / 2 - focal * ((points - origin) @ up) / depth
    return np.stack([column, row], axis=1), depth


def light_axes(theta: float, phi: float) -> tuple[Array, Array]:
    """Unit vectors along the two sides of the light: that of growing phi, and that of growing theta."""
    t, p = math.radians(theta), math.radians(phi)
    along_phi = np.array([-math.sin(p), math.cos(p), 0.0])
    along_theta = np.array([math.cos(t) * math.cos(p), math.cos(t) * math.sin(p), -math.sin(t)])
    return along_phi, along_theta


def shadow_window(vertices: Array, theta: float, phi: float, size: float, image_size: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, right and bottom exclusive, that holds all of the penumbra.

    The shadow that a convex body throws from any point of a flat light lies in the convex hull of the shadows of its
    vertices from the light's corners. All vertices (N, 3) are above the ground and below the light.
    """
    center = np.array(light_position(theta, phi))
    along_phi, along_theta = light_axes(theta, phi)
    landed = [vertices * (1, 1, 0)]
    for i in (-size / 2, size / 2):
        for j in (-size / 2, size / 2):
            corner = center + i * along_phi + j * along_theta
            fall = vertices[:, 2] / (corner[2] - vertices[:, 2])
            landed.append((vertices + (vertices - corner) * fall[:, None]) * (1, 1, 0))
    pixels, depth = project(np.vstack(landed), image_size)
    if depth.min() < 1.0:  # a part lies next to or behind the camera, where pixels mean nothing
        return 0, 0, image_size, image_size
    low = np.clip(np.floor(pixels.min(axis=0)) - 1, 0, image_size).astype(int)
    high = np.clip(np.ceil(pixels.max(axis=0)) + 1, 0, image_size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
