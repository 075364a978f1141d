"""Putting an object into the scene: centred, scaled, resting on the ground."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shadowlab.tasks.shadow.render.shapes import Part

MAX_HEIGHT = 1.6  # scene units
MAX_RADIUS = 1.0  # greatest distance from the vertical axis, scene units


def rest_on_ground(parts: Sequence[Part]) -> list[Part]:
    """Scale uniformly to fit a cylinder of MAX_RADIUS and MAX_HEIGHT, and stand it on z = 0 at the origin.

    The middle of the bounding box comes to the vertical axis. Vertices that no face uses do not count.

    Raises:
        ValueError: the object has no surface; the message says why.
    """
    triangles = [part.vertices[part.faces] for part in parts if len(part.faces)]
    if not triangles:
        raise ValueError("it has no faces")
    if not any(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]).any() for t in triangles):
        raise ValueError("all of its faces are without area")
    vertices = np.vstack([t.reshape(-1, 3) for t in triangles])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    moved = vertices - origin
    extent = max(np.linalg.norm(moved[:, :2], axis=1).max() / MAX_RADIUS, moved[:, 2].max() / MAX_HEIGHT)
    return [replace(part, vertices=(part.vertices - origin) / extent) for part in parts if len(part.faces)]
