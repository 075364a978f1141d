"""The few numbers that each sample of a data set is kept by, while it is examined; of all samples together they say
what no single one does.

Legend: n samples, H W pixels of the files, S = 64 side of the reduced pictures.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shadowlab.tasks.shadow.geometry import SIDE, Floats, small
from shadowlab.tasks.shadow.pictures import Pictures

NUMBERS = (
    "mask_share",  # of the picture, that the mask marks
    "mask_touches",  # borders of the picture that the mask touches, 0 to 4
    "bottom",  # row below the mask, columns of its middle, its height and width, each as a share of the side
    "middle",
    "height",
    "width",
    "shadow_most",  # the brightest value of the shadow map
    "shadow_border",  # the median of the pixels along the picture's borders
    "shadow_between",  # of the pixels that are not black, the share that is not white
    "shadow_x",  # the shadow's centroid, as shares of the side; 0 where there is none
    "shadow_y",
    "covered",  # of the dark part of the shadow, the share that lies in the mask
    "softness",  # mean way from 10 to 90 % of the shadow, as a share of the side; 0 where there is none
    "object_extreme",  # of the object's pixels in the mask, the share whose channels are each black or white
    "object_lit",  # correlation of the object's brightness with its height in the mask
    "look_high",  # a checksum of the object in its mask: upper and lower 16 bits
    "look_low",
)
_HAZE = 0.05  # values below are taken for background
_DARK = 0.2
_LOOKED_AT = 128  # pixels of a side that an object is told apart by


@dataclass(frozen=True, eq=False)
class Numbers:
    """Of n samples: `numbers["covered"]` is (n,) float32."""

    rows: NDArray[np.float32]
    """(n, len(NUMBERS))."""

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.rows[:, NUMBERS.index(name)]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def looks(self) -> list[int]:
        """(n,) the same for samples whose objects look the same."""
        return (self["look_high"].astype(np.int64) * 65536 + self["look_low"].astype(np.int64)).tolist()


def numbers_of(pictures: Pictures, composited: Tensor) -> NDArray[np.float32]:
    """(len(NUMBERS),) float32 of one sample. composited: (3, H, W) in [0, 1], the object without its background."""
    mask, shadow = small(pictures.mask), small(pictures.shadow)
    values = {**_of_mask(pictures.mask[0], mask), **_of_shadow(pictures.shadow[0], shadow, mask)}
    step = max(1, max(composited.shape[1:]) // _LOOKED_AT)
    some, solid = composited[:, ::step, ::step].numpy(), pictures.mask[0, ::step, ::step].numpy() > 0.5
    values |= _of_object(some, solid)
    look = zlib.crc32((some * 255).astype(np.uint8).tobytes())
    values |= {"look_high": float(look >> 16), "look_low": float(look & 65535)}
    return np.array([values[name] for name in NUMBERS], np.float32)


def _of_mask(native: Tensor, mask: Floats) -> dict[str, float]:
    solid = mask >= min(0.5, float(mask.max()))
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    marked = native.numpy()
    borders = (marked[0], marked[-1], marked[:, 0], marked[:, -1])
    return {
        "mask_share": float(marked.mean()),
        "mask_touches": float(sum(bool(border.any()) for border in borders)),
        "bottom": (rows[-1] + 1) / SIDE,
        "middle": (columns[0] + columns[-1] + 1) / 2 / SIDE,
        "height": (rows[-1] + 1 - rows[0]) / SIDE,
        "width": (columns[-1] + 1 - columns[0]) / SIDE,
    }


def _of_shadow(native: Tensor, shadow: Floats, mask: Floats) -> dict[str, float]:
    levels = native.numpy()
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    seen = levels[levels > 0.03]
    weights = np.where(shadow > _HAZE, shadow, 0.0)
    total = float(weights.sum())
    place = np.arange(SIDE) + 0.5
    dark = shadow > _DARK
    return {
        "shadow_most": float(levels.max()),
        "shadow_border": float(np.median(border)),
        "shadow_between": float((seen < 0.97).mean()) if seen.size else 0.0,
        "shadow_x": float(weights.sum(axis=0) @ place) / total / SIDE if total else 0.0,
        "shadow_y": float(weights.sum(axis=1) @ place) / total / SIDE if total else 0.0,
        "covered": float((dark & (mask >= 0.5)).sum()) / max(int(dark.sum()), 1),
        "softness": _softness(shadow),
    }


def _softness(shadow: Floats) -> float:
    """The area of the penumbra over the length of its lines, by the integral of its steepness (coarea formula)."""
    most = float(shadow.max())
    if most < _HAZE:
        return 0.0
    relative = shadow / most
    down, right = np.gradient(relative)
    band = (relative > 0.1) & (relative < 0.9)
    steep = float(np.hypot(down, right)[band].sum())
    return 0.8 * float(band.sum()) / steep / SIDE if steep > 0 else 0.0


def _of_object(picture: Floats, solid: NDArray[np.bool_]) -> dict[str, float]:
    """picture: (3, h, w) in [0, 1]. solid: (h, w)."""
    rows, columns = np.nonzero(solid)
    inside = picture[:, rows, columns]
    if inside.shape[1] < 16:
        return {"object_extreme": 0.0, "object_lit": 0.0}
    extreme = float((np.abs(inside - 0.5) > 0.49).all(axis=0).mean())
    level, height = inside.mean(axis=0), -rows.astype(np.float32)
    level, height = level - level.mean(), height - height.mean()
    spread = float(np.sqrt((level @ level) * (height @ height)))
    return {"object_extreme": extreme, "object_lit": float(level @ height) / spread if spread > 1e-6 else 0.0}
