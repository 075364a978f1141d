"""Shading normals: smooth across shallow edges, sharp across creases. They matter to the object's picture only."""

from dataclasses import dataclass

import numpy as np

from shadowlab.tasks.shadow.render.shapes import Array, Part

_MAX_PAIRS = 4_000_000  # corner pairs compared at a time; bounds the memory to some 200 MB


@dataclass(frozen=True)
class Corners:
    """A triangle soup: three corners for each of F faces, in order."""

    positions: Array
    """(3F, 3)."""
    normals: Array
    """(3F, 3), of unit length."""
    uv: Array | None
    """(3F, 2), or None."""
    colors: Array | None
    """(3F, 3), or None."""


def crease_corners(part: Part, crease: float = 40.0) -> Corners:
    """Unshare the faces of `part` and give each corner its normal.

    A corner's normal is the area-weighted mean over the faces that meet at its position and turn by less than
    `crease` degrees against its own face. Faces of no area are dropped.
    """
    triangles = part.vertices[part.faces]
    weighted = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(weighted, axis=1)
    kept = area > 0
    faces, weighted, area = part.faces[kept], weighted[kept], area[kept]
    unit = weighted / area[:, None]

    corner_vertices = faces.ravel()
    positions = part.vertices[corner_vertices]
    face_of = np.repeat(np.arange(len(faces)), 3)
    scale = np.abs(part.vertices).max() or 1.0
    _, place = np.unique(np.round(positions / scale * 1e6).astype(np.int64), axis=0, return_inverse=True)
    normals = _mean_normals(place.ravel(), face_of, unit, weighted, np.cos(np.radians(crease)))
    return Corners(
        positions,
        normals,
        None if part.uv is None else part.uv[corner_vertices],
        None if part.vertex_colors is None else part.vertex_colors[corner_vertices] * np.asarray(part.color),
    )


def _mean_normals(place: np.ndarray, face_of: np.ndarray, unit: Array, weighted: Array, min_cosine: float) -> Array:
    """`place` numbers the position of each corner, `face_of` its face; unit and area-weighted face normals (F, 3)."""
    order = np.argsort(place, kind="stable")
    count = np.bincount(place)  # corners that meet at each place
    start = np.cumsum(count) - count
    num_pairs = count[place[order]]
    normals = np.zeros((len(place), 3))
    begin = 0
    ends = np.cumsum(num_pairs)
    while begin < len(order):
        done = ends[begin] - num_pairs[begin]
        stop = max(begin + 1, int(np.searchsorted(ends, done + _MAX_PAIRS, side="right")))
        chunk = order[begin:stop]
        repeats = num_pairs[begin:stop]
        mine = np.repeat(chunk, repeats)
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        other = face_of[order[np.repeat(start[place[chunk]], repeats) + within]]
        alike = (unit[face_of[mine]] * unit[other]).sum(axis=1) > min_cosine
        for axis in range(3):
            normals[:, axis] += np.bincount(mine[alike], weighted[other[alike], axis], minlength=len(place))
        begin = stop
    own = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(own > 0, normals / np.maximum(own, 1e-300), unit[face_of])
