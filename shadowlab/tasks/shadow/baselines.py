"""Shadows without learning: what a model has to beat.

- all black: no shadow;
- drop shadow: the mask, shifted and blurred, as most programs draw it;
- inflated silhouette: the mask as a body that stands on the ground, under an area light.

All take a mask (H, W), of which 0.5 and more is the object, and a light (theta degrees, phi degrees, size scene units),
and return a shadow map (H, W) float32 in [0, 1], bright = shadow, as if the object were invisible. An empty mask throws
no shadow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from shadowlab.tasks.shadow.light import LIGHT_DISTANCE, check_light, light_position
from shadowlab.tasks.shadow.render.camera import light_axes
from shadowlab.tasks.shadow.view import Array, View

ShadowMap = NDArray[np.float32]

LIGHT_POINTS = 5
"""Points of the area light along each side."""
_MOST_PIXELS = 256  # longest side that bodies and shadows are computed at; larger pictures get theirs interpolated
_LEVELS = 12  # radii of inscribed discs that are told apart
_HIGHEST = 0.9  # part of the light's height up to which a body's shadow is followed
# A body over the origin has its foot, in the picture, at most its width before the origin (rendered objects: 0.3 behind
# to 1.1 before); one elsewhere has its middle as far behind its foot as a ball.
_MOST_BEFORE, _BALL_BEHIND = 1.0, 0.25


def all_black(mask: ArrayLike) -> ShadowMap:
    """No shadow anywhere."""
    return np.zeros(_binary(mask).shape, dtype=np.float32)


def drop_shadow(mask: ArrayLike, theta: float, phi: float, size: float) -> ShadowMap:
    """The mask, shifted away from the light by its height times tan theta, under one Gaussian that grows with size.

    Knows neither camera nor ground; upwards in the picture counts as away from the camera.

    Raises:
        UserError: the light is out of range.
    """
    from scipy import ndimage  # here and below: what no other command needs to wait for

    check_light(theta, phi, size, "drop shadow")
    solid = _binary(mask)
    rows = np.flatnonzero(solid.any(axis=1))
    if not len(rows):
        return np.zeros(solid.shape, dtype=np.float32)
    length = math.tan(math.radians(theta)) * (rows[-1] - rows[0] + 1)
    shift = (length * math.sin(math.radians(phi)), -length * math.cos(math.radians(phi)))
    moved = ndimage.shift(solid.astype(np.float32), shift, order=1)
    blurred = ndimage.gaussian_filter(moved, size / LIGHT_DISTANCE * max(solid.shape) / 20, mode="constant")
    return np.clip(blurred, 0.0, 1.0).astype(np.float32)


def inflated_silhouette(mask: ArrayLike, theta: float, phi: float, size: float, view: View) -> ShadowMap:
    """The mean shadow that the inflated mask throws on the ground from 5 x 5 points of the light.

    The mask becomes a body: it stands upright, facing the camera, and is thickened by its distance transform so that
    its parts have circular cross sections (times `view.thickness`). The body stands over the origin where its foot
    in the picture allows it, and otherwise where its foot is. Each point of the light counts as much as it lights
    the ground, by the cosines and the distance, so that the map is 1 - E / E without the object, as in a rendering.

    Raises:
        UserError: the light is out of range.
    """
    check_light(theta, phi, size, "inflated silhouette")
    solid = _binary(mask)
    shadow = np.zeros(solid.shape, dtype=np.float32)
    body = _inflate(_reduced(solid), view)
    if body is not None:
        _draw(shadow, *_cast(body, _light_points(theta, phi, size), theta, phi), view)
    return shadow


def standing_point(mask: ArrayLike, view: View) -> tuple[float, float]:
    """x and y on the ground of the middle of what the mask shows. Raises ValueError where it shows nothing."""
    solid = _binary(mask)
    if not solid.any():
        raise ValueError("an empty mask stands nowhere")
    height, width = solid.shape
    y = _middle(solid, view)
    columns = np.flatnonzero(solid.any(axis=0))
    depth = view.distance + y * math.cos(math.radians(view.elevation))
    middle = (columns[0] + columns[-1] + 1) / 2 - width / 2
    return float(middle * depth / view.focal(height, width)), y


Baseline = Callable[[ArrayLike, float, float, float, View], ShadowMap]
BASELINES: Mapping[str, Baseline] = {
    "all black": lambda mask, theta, phi, size, view: all_black(mask),
    "drop shadow": lambda mask, theta, phi, size, view: drop_shadow(mask, theta, phi, size),
    "inflated silhouette": inflated_silhouette,
}
"""Name -> function of mask (H, W), theta, phi, size and view."""


def _binary(mask: ArrayLike) -> NDArray[np.bool_]:
    values = np.asarray(mask)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a mask is (H, W), not {values.shape}")
    return values if values.dtype == bool else values >= 0.5


def _reduced(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of at most `_MOST_PIXELS` along the longer side, and with something left of the object."""
    height, width = mask.shape
    scale = _MOST_PIXELS / max(height, width)
    if scale >= 1:
        return mask
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    cover = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(shape, Image.Resampling.BOX))
    return cover >= min(0.5, max(float(cover.max()), 1e-6))


@dataclass(frozen=True)
class _Body:
    """Slices at heights `z` (K,); in slice k, column i, all from `near` to `far` (K, N) along y; far < near: nothing.

    Columns are `cell` apart and lie symmetrically about x = 0.
    """

    z: Array
    near: Array
    far: Array
    cell: float
    reach: tuple[float, float, float, float]
    """Ground that the picture shows: least and greatest x, least and greatest y."""


def _inflate(mask: NDArray[np.bool_], view: View) -> _Body | None:
    """None where nothing of the mask stands above the ground."""
    if not mask.any():
        return None
    height, width = mask.shape
    reach = _visible_ground(height, width, view)
    middle = _middle(mask, view)
    cell = view.unit(height, width)
    rows, columns = np.nonzero(mask)
    depth = view.distance + middle * math.cos(math.radians(view.elevation))  # at the body's foot
    widest = np.abs(np.array([columns.min(), columns.max() + 1]) - width / 2).max() * depth / view.focal(height, width)
    count = max(math.ceil(widest / cell) + 1, 1)
    x = (np.arange(-count, count) + 0.5) * cell
    z = _heights(int(rows.min()), middle, cell, height, width, view)
    column, row, depths = view.project(x[None], np.array(middle), z[:, None], height, width)
    column, row = np.floor(column), np.floor(np.broadcast_to(row, column.shape))
    inside = (depths > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    at = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
    inside &= mask[at]
    filled = inside.any(axis=1)
    if not filled.any():
        return None
    half = np.where(inside, _half_depth(mask)[at] * view.thickness * depths / view.focal(height, width), -1.0)[filled]
    return _Body(z[filled], middle - half, middle + half, cell, reach)


def _visible_ground(height: int, width: int, view: View) -> tuple[float, float, float, float]:
    columns, rows = np.array([0.0, width])[:, None], np.linspace(0.0, height, 65)[None]
    x, y = view.ground(columns, rows, height, width)
    far = 4 * view.distance  # near a horizon in the picture the ground has no end
    seen = np.isfinite(x) & (y <= far)
    if not seen.any():
        return 0.0, 0.0, 0.0, 0.0
    side = float(np.abs(x[seen]).max())
    return -side, side, float(y[seen].min()), float(y[seen].max())


def _middle(mask: NDArray[np.bool_], view: View) -> float:
    """y of the upright plane that the mask is painted on: the origin's, 0, unless the foot lies elsewhere."""
    height, width = mask.shape
    foot = float(np.flatnonzero(mask.any(axis=1))[-1]) + 1
    farthest = 4 * view.distance  # of a foot above the horizon, too
    front = min(float(np.nan_to_num(view.ground(width / 2, foot, height, width)[1], nan=farthest)), farthest)
    columns = np.flatnonzero(mask.any(axis=0))
    depth = view.distance + front * math.cos(math.radians(view.elevation))
    wide = float(columns[-1] - columns[0] + 1) * depth / view.focal(height, width)
    if front >= -_MOST_BEFORE * wide:
        return max(front, 0.0)
    return front + _BALL_BEHIND * wide


def _heights(top: int, middle: float, cell: float, height: int, width: int, view: View) -> Array:
    """Heights of slices, from the ground to what is seen at row `top`, but at most `_HIGHEST` of the light's."""
    sin, cos = math.sin(math.radians(view.elevation)), math.cos(math.radians(view.elevation))
    up = (height / 2 - top) / view.focal(height, width)
    # Of the point (middle, z): up * (distance + middle cos - z sin) = middle sin + z cos.
    below = cos + up * sin
    highest = (up * (view.distance + middle * cos) - middle * sin) / below if below > 1e-6 else math.inf
    highest = min(max(highest, cell), _HIGHEST * LIGHT_DISTANCE)
    return np.arange(0.0, highest + cell, cell)


def _half_depth(mask: NDArray[np.bool_]) -> Array:
    """(H, W) pixels: half the chord, through each pixel, of a ball as wide as the mask is there."""
    from scipy import ndimage

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    from_edge = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
    radius = from_edge.copy()  # of the largest inscribed disc that covers the pixel, to the level below
    for level in np.geomspace(1.0, max(float(from_edge.max()), 1.0), _LEVELS):
        radius[ndimage.distance_transform_edt(from_edge < level) < level] = level
    radius = np.maximum(radius, from_edge)
    half = np.zeros(mask.shape)
    half[box] = np.where(mask[box], np.sqrt(radius**2 - (radius - from_edge) ** 2), 0.0)
    return half


def _light_points(theta: float, phi: float, size: float) -> Array:
    """Centres of 5 x 5 equal squares of the light, (25, 3)."""
    along_phi, along_theta = light_axes(theta, phi)
    steps = ((np.arange(LIGHT_POINTS) + 0.5) / LIGHT_POINTS - 0.5) * size
    points = np.array(light_position(theta, phi)) + steps[:, None, None] * along_phi + steps[:, None] * along_theta
    return points.reshape(-1, 3)


def _cast(body: _Body, points: Array, theta: float, phi: float) -> tuple[Array, Array, Array]:
    """x (N,) and y (M,) of a grid on the ground, and the share of light (M, N) that the body takes away there.

    A slice at height z lies over the ground, seen from a light point p, scaled by 1 - z / p_z about p: each of its
    columns covers an interval of a column of the ground. The union of the intervals is counted from their ends.
    """
    x, y = _grid(body, points)
    num_x, num_y = len(x), len(y)
    shadow, total = np.zeros((num_y, num_x)), np.zeros((num_y, num_x))
    facing = -np.array(light_position(theta, phi)) / LIGHT_DISTANCE
    first = -(body.near.shape[1] // 2) * body.cell
    slices = np.arange(len(body.z))[:, None]
    for point in points:
        across = (x - point[0])[None], (y - point[1])[:, None]
        cosine = np.maximum(across[0] * facing[0] + across[1] * facing[1] - point[2] * facing[2], 0.0)
        light = cosine * point[2] / (across[0] ** 2 + across[1] ** 2 + point[2] ** 2) ** 2
        total += light
        part = (body.z / point[2])[:, None]
        column = np.floor((x[None] * (1 - part) + point[0] * part - first) / body.cell).astype(int)
        inside = (column >= 0) & (column < body.near.shape[1]) & (part < _HIGHEST)
        column = np.where(inside, column, 0)
        near, far = body.near[slices, column], body.far[slices, column]
        scale = np.where(part < _HIGHEST, 1 - part, 1.0)
        begin = np.ceil(((near - point[1] * part) / scale - y[0]) / body.cell).clip(0, num_y).astype(int)
        end = (np.floor(((far - point[1] * part) / scale - y[0]) / body.cell) + 1).clip(0, num_y).astype(int)
        inside &= (far >= near) & (end > begin)
        ground = np.broadcast_to(np.arange(num_x), inside.shape)[inside]
        length = (num_y + 1) * num_x
        ends = np.bincount(begin[inside] * num_x + ground, minlength=length)
        ends -= np.bincount(end[inside] * num_x + ground, minlength=length)
        shadow += light * (ends.reshape(num_y + 1, num_x)[:-1].cumsum(axis=0) > 0)
    return x, y, np.divide(shadow, total, out=np.zeros_like(shadow), where=total > 0)


def _grid(body: _Body, points: Array) -> tuple[Array, Array]:
    """x and y of the ground that is visible and in reach of the shadow, `body.cell` apart, a cell more on each side."""
    part = np.minimum(body.z[:, None] / points[None, :, 2], _HIGHEST)
    solid = body.far >= body.near
    ahead = np.where(solid, body.near, np.inf).min(axis=1)[:, None]
    behind = np.where(solid, body.far, -np.inf).max(axis=1)[:, None]
    side = (body.near.shape[1] / 2) * body.cell
    x = [(edge - points[None, :, 0] * part) / (1 - part) for edge in (-side, side)]
    y = [(edge - points[None, :, 1] * part) / (1 - part) for edge in (ahead, behind)]
    west, east = max(float(x[0].min()), body.reach[0]), min(float(x[1].max()), body.reach[1])
    south, north = max(float(y[0].min()), body.reach[2]), min(float(y[1].max()), body.reach[3])
    cell = body.cell
    columns = np.arange(math.floor(west / cell) - 1.0, math.ceil(max(east, west) / cell) + 1.0)
    rows = np.arange(math.floor(south / cell) - 1.0, math.ceil(max(north, south) / cell) + 2.0)
    return np.float64(cell) * (columns + 0.5), np.float64(cell) * rows


def _draw(picture: ShadowMap, x: Array, y: Array, shadow: Array, view: View) -> None:
    """Puts what lies on the ground at x (N,), y (M,) into the `picture` (H, W) that the camera takes."""
    from scipy import ndimage

    height, width = picture.shape
    cell = x[1] - x[0]
    _, row_y = view.ground(width / 2, np.arange(height) + 0.5, height, width)
    rows = np.flatnonzero((row_y >= y[0] - cell) & (row_y <= y[-1] + cell))
    if not len(rows):
        return
    at_x, at_y = view.ground(np.arange(width)[None] + 0.5, rows[:, None] + 0.5, height, width)
    places = [(at_y - y[0]) / cell, (at_x - x[0]) / cell]
    picture[rows] = ndimage.map_coordinates(shadow.astype(np.float32), places, order=1, cval=0.0)
