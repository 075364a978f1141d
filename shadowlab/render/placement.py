"""Putting an object into the scene: centred, scaled, resting on the ground."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shadowlab.render.shapes import Part

MAX_HEIGHT = 1.6  # scene units
MAX_RADIUS = 1.0  # greatest distance from the vertical axis, scene units


def rest_on_ground(parts: Sequence[Part]) -> list[Part]:
    """Scale uniformly to fit a cylinder of MAX_RADIUS and MAX_HEIGHT, centre the bounding box on z, and put its base on 0.

    Vertices that no face uses do not count.

    Raises:
        ValueError: the object has no face or no extent.
    """
    used = [part.vertices[np.unique(part.faces)] for part in parts if len(part.faces)]
    if not used:
        raise ValueError("it has no faces")
    vertices = np.vstack(used)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    moved = vertices - origin
    extent = max(np.linalg.norm(moved[:, :2], axis=1).max() / MAX_RADIUS, moved[:, 2].max() / MAX_HEIGHT)
    if not extent > 0:
        raise ValueError("all of its vertices are one point")
    return [replace(part, vertices=(part.vertices - origin) / extent) for part in parts if len(part.faces)]
