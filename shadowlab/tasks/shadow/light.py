"""The light: ranges, geometry and the 768-dimensional embedding that conditions the UNet.

Legend: B batch. Angles in degrees, size in scene units (side of the square area light).

The paper (Tasar et al., arXiv 2412.11972, Eq. 7) embeds each scalar sinusoidally. That is not periodic in
phi: 0 and 359 degrees would lie far apart although the light is the same. Here phi enters through the
integer harmonics of the angle, which gives phi and phi + 360 the same vector.
"""

import math

import torch
from torch import Tensor

from shadowlab.data import read_number
from shadowlab.errors import UserError

THETA_RANGE = (0.0, 45.0)  # polar angle, degrees; 0 is straight above
PHI_RANGE = (0.0, 360.0)  # azimuth, degrees; 0 is +x, the shadow falls to the left
SIZE_RANGE = (2.0, 8.0)  # side of the square area light, scene units
LIGHT_DISTANCE = 8.0  # radius of the sphere that the light sits on, scene units

Light = tuple[float, float, float]  # theta degrees, phi degrees, size scene units

RANGES = {"theta": THETA_RANGE, "phi": PHI_RANGE, "size": SIZE_RANGE}

SCALAR_DIM = 256
EMBEDDING_DIM = 3 * SCALAR_DIM


def check_light(theta: float, phi: float, size: float, where: str) -> None:
    """Raise UserError, naming `where` (a sample id or an option), unless all three are finite and in range."""
    for name, value in (("theta", theta), ("phi", phi), ("size", size)):
        low, high = RANGES[name]
        if not low <= value <= high:  # NaN fails this too
            unit = "scene units" if name == "size" else "degrees"
            raise UserError(f"{where}: light {name} = {value} is outside [{low:g}, {high:g}] {unit}; correct the value")


def light_position(theta: float, phi: float, radius: float = LIGHT_DISTANCE) -> tuple[float, float, float]:
    """Cartesian centre of the light: (r sin theta cos phi, r sin theta sin phi, r cos theta)."""
    t, p = math.radians(theta), math.radians(phi)
    return radius * math.sin(t) * math.cos(p), radius * math.sin(t) * math.sin(p), radius * math.cos(t)


_NUM_HARMONICS = SCALAR_DIM // 2
_HARMONIC_DECAY = 0.8


def _harmonics(angle: Tensor) -> Tensor:
    """Cosines and sines of k * angle, k = 1 .. 128, weighted by sqrt(0.8 ** k). (B,) -> (B, 256), of the same dtype.

    With these weights the inner product of two vectors is the Poisson kernel of their angular difference,
    which falls strictly from 0 to pi: near angles give near vectors, and the distance grows up to half a turn.
    Scaled to the norm of the UNet's own timestep embedding, sqrt(128).
    """
    k = torch.arange(1, _NUM_HARMONICS + 1, dtype=angle.dtype, device=angle.device)
    weight = _HARMONIC_DECAY ** (k / 2)
    weight = weight * math.sqrt(_NUM_HARMONICS) / weight.norm()
    phase = angle[:, None] * k
    return torch.cat([weight * phase.cos(), weight * phase.sin()], dim=1)


def embed_light(light: Tensor) -> Tensor:
    """(B, 3) theta, phi, size -> (B, 768) float32, whatever dtype comes in.

    phi turns a full circle over its range and is periodic; theta and size turn half a circle over theirs, so
    their two ends are as far apart as can be.

    Raises:
        UserError: a value is not finite or outside RANGES, naming the row.
    """
    for row, (theta, phi, size) in enumerate(light.tolist()):
        check_light(theta, phi, size, f"light in row {row}")
    return light_vector(light.double()).float()


def light_vector(light: Tensor) -> Tensor:
    """`embed_light` in the dtype of `light`, for a tracer: no value is looked at. (B, 3) -> (B, 768)."""
    theta, phi, size = light.unbind(dim=1)
    angles = (
        (theta - THETA_RANGE[0]) / (THETA_RANGE[1] - THETA_RANGE[0]) * math.pi,
        torch.remainder(phi, 360.0) / 180.0 * math.pi,
        (size - SIZE_RANGE[0]) / (SIZE_RANGE[1] - SIZE_RANGE[0]) * math.pi,
    )
    return torch.cat([_harmonics(angle) for angle in angles], dim=1)


def embed_intensity(intensity: Tensor) -> Tensor:
    """(B,) in [0, 1] -> (B, 256) float32: half a circle over its range, as theta and size."""
    return intensity_vector(intensity.double()).float()


def intensity_vector(intensity: Tensor) -> Tensor:
    """`embed_intensity` in the dtype of `intensity`, for a tracer. (B,) -> (B, 256)."""
    return _harmonics(intensity * math.pi)


def read_light(values: dict[str, object], where: str, problems: list[str]) -> Light | None:
    """theta, phi, size as floats, or None with every reason in `problems`."""
    lows = {name: bounds[0] for name, bounds in RANGES.items()}
    light: list[float] = []
    for key in RANGES:
        value = read_number(values, key, where, problems)
        if value is None:
            continue
        try:
            check_light(**{**lows, key: value}, where=where)  # one at a time, so that all three are judged
        except UserError as error:
            problems.append(str(error))
        else:
            light.append(float(value))
    return (light[0], light[1], light[2]) if len(light) == 3 else None


def mirrored_light(light: Tensor) -> Tensor:
    """(..., 3) -> (..., 3): the light of the scene that is mirrored at the plane x = 0, and so of the picture that is
    mirrored left to right, for the camera lies in this plane: (x, y, z) -> (-x, y, z), that is phi -> 180 - phi."""
    theta, phi, size = light.unbind(dim=-1)
    return torch.stack([theta, torch.remainder(180.0 - phi, 360.0), size], dim=-1)


def near_light(light: Tensor) -> Tensor:
    """(B, 3) -> (B, 3): each value a quarter of its range beyond the middle, on the other side of it."""
    low, high = torch.tensor(list(RANGES.values()), dtype=light.dtype, device=light.device).unbind(dim=1)
    middle, quarter = (low + high) / 2, (high - low) / 4
    return torch.where(light <= middle, middle + quarter, middle - quarter)


def far_lights(light: Tensor) -> dict[str, Tensor]:
    """(B, 3) -> for theta, phi and size the lights (B, 3) that differ in it alone: half a turn for phi, else the
    farther end of its range."""
    others = {}
    for column, (name, (low, high)) in enumerate(RANGES.items()):
        other = light.clone()
        own = light[:, column]
        far = torch.where(own * 2 > low + high, low, high)
        other[:, column] = (own + 180.0) % 360.0 if name == "phi" else far
        others[name] = other
    return others
