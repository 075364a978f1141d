"""Triangle-mesh building blocks: boxes, superquadrics, lathed, extruded and swept shapes.

Everything is right-handed with z up, in arbitrary units; `placement.rest_on_ground` scales the finished object.
Legend: V vertices, F faces, N points of an outline or profile.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Faces = NDArray[np.int64]

PLAIN_GREY = (0.5, 0.5, 0.5)  # linear reflectance of a surface that says nothing about its colour


@dataclass(frozen=True)
class Part:
    """One surface of one material."""

    vertices: Array
    """(V, 3), z up."""
    faces: Faces
    """(F, 3) indices into `vertices`."""
    color: tuple[float, float, float] = PLAIN_GREY
    """Linear RGB reflectance in [0, 1]; multiplies the texture or the vertex colours where there are any."""
    uv: Array | None = None
    """(V, 2) texture coordinates, v upwards, or None."""
    texture: NDArray[np.uint8] | None = None
    """(H, W, 3) uint8 sRGB picture that `uv` points into, or None."""
    vertex_colors: Array | None = None
    """(V, 3) linear RGB in [0, 1], or None."""

    def moved(self, offset: ArrayLike) -> "Part":
        return replace(self, vertices=self.vertices + np.asarray(offset, dtype=np.float64))

    def scaled(self, factor: ArrayLike) -> "Part":
        return replace(self, vertices=self.vertices * np.asarray(factor, dtype=np.float64))

    def turned(self, axis: str, degrees: float) -> "Part":
        return replace(self, vertices=self.vertices @ rotation(axis, degrees).T)

    def painted(self, color: ArrayLike) -> "Part":
        red, green, blue = np.asarray(color, dtype=np.float64).tolist()
        return replace(self, color=(red, green, blue))

    def textured(self, uv: Array, texture: NDArray[np.uint8]) -> "Part":
        return replace(self, uv=uv, texture=texture)

    def colored(self, vertex_colors: Array) -> "Part":
        return replace(self, vertex_colors=vertex_colors)


def linear_from_srgb(value: Array) -> Array:
    """sRGB's transfer function (IEC 61966-2-1), [0, 1] -> [0, 1]."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def rotation(axis: str, degrees: float) -> Array:
    """Rotation matrix (3, 3) about one of the axes "x", "y", "z", counter-clockwise seen from its tip."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def rotation_between(start: Array, end: Array) -> Array:
    """The smallest rotation (3, 3) that takes the direction of `start` to that of `end`."""
    a, b = start / np.linalg.norm(start), end / np.linalg.norm(end)
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -1 + 1e-9:  # half a turn about any axis at right angles
        helper = np.eye(3)[np.argmin(np.abs(a))]
        normal = np.cross(a, helper)
        normal /= np.linalg.norm(normal)
        return 2 * np.outer(normal, normal) - np.eye(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def box(size: ArrayLike, taper: float = 1.0) -> Part:
    """A box of `size` (x, y, z) standing on z = 0; its top is `taper` times as wide as its foot (0 = pyramid)."""
    x, y, z = np.asarray(size, dtype=np.float64)
    foot = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (x / 2, y / 2)
    vertices = np.vstack([np.c_[foot, np.zeros(4)], np.c_[foot * taper, np.full(4, z)]])
    quads = [(3, 2, 1, 0), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
    faces = [(a, b, c) for a, b, c, _ in quads] + [(a, c, d) for a, _, c, d in quads]
    return Part(vertices, np.array(faces))


def _grid_faces(rows: int, columns: int, wrap_rows: bool, wrap_columns: bool) -> Faces:
    """Two triangles for each cell of a grid of vertices numbered row by row, optionally closed on itself."""
    r = np.arange(rows if wrap_rows else rows - 1)[:, None]
    c = np.arange(columns if wrap_columns else columns - 1)[None, :]
    r1, c1 = (r + 1) % rows, (c + 1) % columns
    a, b, d, e = (np.ravel(i * columns + j + 0 * (r + c)) for i, j in ((r, c), (r, c1), (r1, c1), (r1, c)))
    return np.vstack([np.c_[a, b, d], np.c_[a, d, e]])


def _without_slivers(vertices: Array, faces: Faces) -> Faces:
    """Drop triangles of no area, such as those at the poles of a grid."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return faces[area > 1e-12]


def lathe(profile: ArrayLike, segments: int = 64, closed: bool = False) -> Part:
    """Surface of revolution about z of a `profile` of (radius, z) points. `closed` joins the last to the first."""
    points = np.asarray(profile, dtype=np.float64)
    angle = np.arange(segments) * (2 * math.pi / segments)
    ring = np.stack([np.cos(angle), np.sin(angle), np.ones(segments)], axis=1)
    vertices = (ring[None] * points[:, None, [0, 0, 1]]).reshape(-1, 3)
    faces = _grid_faces(len(points), segments, wrap_rows=closed, wrap_columns=True)
    return Part(vertices, _without_slivers(vertices, faces))


def cylinder(radius: float, height: float, top_radius: float | None = None, segments: int = 64) -> Part:
    """A capped cylinder or cone frustum standing on z = 0."""
    top = radius if top_radius is None else top_radius
    return lathe([(0, 0), (radius, 0), (top, height), (0, height)], segments)


def torus(radius: float, tube_radius: float, segments: int = 64) -> Part:
    """A torus about z, centred at the origin."""
    angle = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    profile = np.c_[radius + tube_radius * np.cos(angle), tube_radius * np.sin(angle)]
    return lathe(profile, segments, closed=True)


def superquadric(size: ArrayLike, vertical: float = 1.0, horizontal: float = 1.0) -> Part:
    """Barr's superellipsoid with half axes `size`, centred at the origin.

    Exponents: 1 and 1 an ellipsoid, near 0 a box, 2 a double cone or diamond, above 2 pinched.
    """
    latitude = np.linspace(-math.pi / 2, math.pi / 2, 33)[:, None]
    longitude = np.linspace(-math.pi, math.pi, 64, endpoint=False)[None, :]

    def power(value: Array, exponent: float) -> Array:
        return np.sign(value) * np.abs(value) ** exponent

    around = power(np.cos(latitude), vertical)
    x = around * power(np.cos(longitude), horizontal)
    y = around * power(np.sin(longitude), horizontal)
    z = power(np.sin(latitude), vertical) + 0 * longitude
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3) * np.asarray(size, dtype=np.float64)
    faces = _grid_faces(33, 64, wrap_rows=False, wrap_columns=True)
    return Part(vertices, _without_slivers(vertices, faces))


def sphere(radius: float) -> Part:
    """A sphere centred at the origin."""
    return superquadric((radius, radius, radius))


def extrude(outline: ArrayLike, height: float, twist: float = 0.0, taper: float = 1.0) -> Part:
    """Prism over a simple polygon (N, 2) given counter-clockwise, from z = 0 to `height`.

    Args:
        twist: turn of the top against the foot, degrees.
        taper: size of the top relative to the foot.
    """
    points = np.asarray(outline, dtype=np.float64)
    layers = 1 if twist == 0 else 24
    levels = np.linspace(0, 1, layers + 1)
    rings = [
        np.c_[
            (points * (1 + (taper - 1) * level)) @ rotation("z", twist * level)[:2, :2].T,
            np.full(len(points), level * height),
        ]
        for level in levels
    ]
    sides = _grid_faces(layers + 1, len(points), wrap_rows=False, wrap_columns=True)
    cap = triangulate(points)
    faces = np.vstack([sides, cap[:, ::-1], cap + layers * len(points)])
    return Part(np.vstack(rings), faces)


def extrude_ring(outer: ArrayLike, inner: ArrayLike, height: float) -> Part:
    """Prism between two counter-clockwise loops of the same number of points: a hole right through."""
    loops = [np.asarray(loop, dtype=np.float64) for loop in (outer, inner)]
    if len(loops[0]) != len(loops[1]):
        raise ValueError(f"loops of {len(loops[0])} and {len(loops[1])} points; give both the same number")
    count = len(loops[0])
    levels = [(loops[0], 0.0), (loops[0], height), (loops[1], height), (loops[1], 0.0)]
    vertices = np.vstack([np.c_[points, np.full(count, z)] for points, z in levels])
    return Part(vertices, _grid_faces(4, count, wrap_rows=True, wrap_columns=True))


def triangulate(points: Array) -> Faces:
    """Ear clipping of a simple counter-clockwise polygon (N, 2): (N - 2, 3) indices."""

    def cross(a: int, b: int, c: int) -> float:
        (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
        return float((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))

    def is_ear(a: int, b: int, c: int) -> bool:
        others = (p for p in left if p not in (a, b, c))
        return cross(a, b, c) > 0 and not any(
            cross(a, b, p) >= 0 and cross(b, c, p) >= 0 and cross(c, a, p) >= 0 for p in others
        )

    left, triangles = list(range(len(points))), []
    while len(left) > 3:
        corners = ((left[k - 1], left[k], left[(k + 1) % len(left)]) for k in range(len(left)))
        ear = next((corner for corner in corners if is_ear(*corner)), None)
        if ear is None:
            raise ValueError("the outline crosses itself or runs clockwise; give a simple counter-clockwise polygon")
        triangles.append(ear)
        left.remove(ear[1])
    triangles.append((left[0], left[1], left[2]))
    return np.array(triangles)


def sweep(path: ArrayLike, radius: float, closed: bool = False, sides: int = 16) -> Part:
    """A round tube of `radius` along a `path` of (x, y, z) points, capped at both ends unless `closed`."""
    points = np.asarray(path, dtype=np.float64)
    following, preceding = np.roll(points, -1, axis=0), np.roll(points, 1, axis=0)
    tangents = following - preceding if closed else np.gradient(points, axis=0)
    helper = np.eye(3)[np.argmin(np.abs(tangents[0]))]
    normal = np.cross(tangents[0], helper)
    normals = [normal / np.linalg.norm(normal)]
    for before, after in pairwise(tangents):  # parallel transport: no twist of its own
        normals.append(rotation_between(before, after) @ normals[-1])
    binormals = [np.cross(t / np.linalg.norm(t), n) for t, n in zip(tangents, normals, strict=True)]
    gap = 0.0
    if closed:  # what the frame has turned by on its way round is spread evenly, so that the ends meet
        arrived = rotation_between(tangents[-1], tangents[0]) @ normals[-1]
        gap = math.atan2(float(arrived @ binormals[0]), float(arrived @ normals[0]))
    rings = []
    for k, (point, normal, binormal) in enumerate(zip(points, normals, binormals, strict=True)):
        angle = (np.arange(sides) * (2 * math.pi / sides) - gap * k / len(points))[:, None]
        rings.append(point + radius * (np.cos(angle) * normal + np.sin(angle) * binormal))
    if not closed:
        rings = [np.repeat(points[:1], sides, 0), *rings, np.repeat(points[-1:], sides, 0)]
    vertices = np.vstack(rings)
    faces = _grid_faces(len(rings), sides, wrap_rows=closed, wrap_columns=True)
    return Part(vertices, _without_slivers(vertices, faces))
