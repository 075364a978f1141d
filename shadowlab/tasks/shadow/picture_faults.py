"""What is wrong with the pictures of a data set, as all of them together show it: levels, sides, masks, names.

Legend: n samples, m objects, S = 64 side of the reduced pictures.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shadowlab.data import Fault, one_line
from shadowlab.tasks.shadow.geometry import SIDE, Floats
from shadowlab.tasks.shadow.numbers import Numbers

_MOST = 0.5  # share of samples from which on a fault is one of the data set
_INVERTED = 0.75  # median of a shadow map's border: an inverted one is white there
_GREY = 0.1
_TWO_LEVELS = 0.1  # share of the pixels in shadow that are grey: of rendered sets the least sample has 0.2
_COVERED = 0.93  # share of a shadow in the mask: rendered objects have 0.4, under lights from above 0.8
_WEAK = 0.75
_ALIGNED = 0.1  # correlation of edges by which another place must fit better
_UNRELATED = 0.25
_FEW_OBJECTS = 4
_MANY_OBJECTS = 16
_NUM_NAMED = 3


def inverted_masks(numbers: Numbers) -> NDArray[np.bool_]:
    """(n,): of what marks most of the picture and touches all four borders."""
    return (numbers["mask_share"] > 0.5) & (numbers["mask_touches"] == 4)


def inverted_shadows(numbers: Numbers) -> NDArray[np.bool_]:
    return numbers["shadow_border"] > _INVERTED


def level_faults(numbers: Numbers) -> list[Fault]:
    """Of masks and shadow maps, by their values."""
    faults = []
    share = float(inverted_masks(numbers).mean())
    if share > _MOST:
        faults.append(
            Fault(f"masks: {share:.0%} are inverted (black = object); white = object: save 255 - value", is_error=True)
        )
    share = float(inverted_shadows(numbers).mean())
    border = float(np.median(numbers["shadow_border"]))
    if share > _MOST:
        faults.append(
            Fault(f"shadow maps: {share:.0%} are inverted (bright ground); 255 = full shadow: save 255 - value", True)
        )
        return faults
    if border > _GREY:
        faults.append(
            Fault(f"shadow maps: their borders are {border:.0%} dark, not 0: subtract what is no shadow of the object")
        )
    seen = numbers["shadow_most"] > _GREY
    if seen.any() and np.percentile(numbers["shadow_between"][seen], 90) < _TWO_LEVELS:
        faults.append(
            Fault(
                "shadow maps: they have two levels, black and white (binarised), but area lights throw soft shadows; "
                "export the grey values",
                True,
            )
        )
    elif seen.any() and np.percentile(numbers["shadow_most"][seen], 90) < _WEAK:
        most = float(np.percentile(numbers["shadow_most"][seen], 90))
        faults.append(
            Fault(f"shadow maps: they never get darker than {most:.0%}; 255 = full shadow: multiply by {1 / most:.3g}")
        )
    is_plain = seen.any() and share == 0 and not inverted_masks(numbers).any()
    if is_plain and np.median(numbers["covered"][seen]) > _COVERED:
        faults.append(
            Fault(
                "masks: they contain the shadow (nearly all of it lies inside them), so that the model is given its "
                "target; export masks of the object alone",
                True,
            )
        )
    return faults


def object_faults(numbers: Numbers, looks: Sequence[int]) -> list[Fault]:
    """Of the object pictures, by their values. looks: (n,) the same for samples of one picture."""
    _, first = np.unique(np.asarray(looks), return_index=True)
    faults = []
    if len(first) >= _FEW_OBJECTS and np.median(numbers["object_extreme"][first]) > 0.95:
        faults.append(
            Fault("object pictures: they have two levels, black and white (binarised); export their colours", True)
        )
    lit = numbers["object_lit"][first]
    if len(first) >= _MANY_OBJECTS and lit.mean() < -0.05 and lit.mean() < -2.5 * lit.std() / np.sqrt(len(lit)):
        faults.append(
            Fault(
                f"object pictures: most of {len(first)} objects are darker at the top than below, as if lit from "
                "below: inverted? save 255 - value"
            )
        )
    return faults


def name_faults(ids: Sequence[str], object_ids: Sequence[str], looks: Sequence[int], *, is_meant: bool) -> list[Fault]:
    """One picture under several names of objects. is_meant: names may differ for one object, as the benchmark's do."""
    names: dict[int, set[str]] = defaultdict(set)
    for look, name in zip(looks, object_ids, strict=True):
        names[look].add(name)
    several = [sorted(one) for one in names.values() if len(one) > 1]
    if not several:
        return []
    count = sum(len(one) for one in several)
    example = ", ".join(one_line(name) for name in several[0][:_NUM_NAMED])
    share = count / len(set(object_ids))
    return [
        Fault(
            f"objects: {count} names show {len(several)} objects under several names ({example}), so that train would "
            "validate on objects that it trains on; give each object one `object` in metadata.json",
            is_error=not is_meant and share > _GREY,
        )
    ]


def edges(levels: Floats) -> Floats:
    """(S, S) or (channels, S, S) -> (S, S): how steep the picture is."""
    down, right = np.gradient(levels, axis=(-2, -1))
    steep = np.hypot(down, right)
    return np.asarray(steep if steep.ndim == 2 else np.sqrt((steep**2).sum(axis=0)), np.float32)


def alignment_fault(objects: Floats, masks: Floats) -> Fault | None:
    """Whether the masks outline what the pictures show. objects, masks: (m, S, S), edges of one sample an object."""
    if len(objects) < _FEW_OBJECTS:
        return None
    objects, masks = (one / np.sqrt((one**2).sum(axis=(1, 2), keepdims=True) + 1e-9) for one in (objects, masks))
    here = (objects * masks).sum(axis=(1, 2))
    turned = {
        "are mirrored left to right": objects[:, :, ::-1],
        "are upside down": objects[:, ::-1],
        "are turned by half a turn": objects[:, ::-1, ::-1],
    }
    fits = {said: (other * masks).sum(axis=(1, 2)) for said, other in turned.items()}
    said = max(fits, key=lambda one: float(fits[one].mean()))
    gain = fits[said] - here
    if gain.mean() > _ALIGNED / 2 and gain.mean() > 4 * gain.std() / np.sqrt(len(gain)) and fits[said].mean() > 0.5:
        return _misaligned(f"{said}, against their masks: save both the same way")
    shifts = np.fft.irfft2(np.fft.rfft2(masks).conj() * np.fft.rfft2(objects), s=(SIDE, SIDE))
    total = shifts.mean(axis=0)
    down, right = np.unravel_index(int(total.argmax()), total.shape)
    if total.max() > float(here.mean()) + _ALIGNED and max(min(down, SIDE - down), min(right, SIDE - right)) > 1:
        way = [f"{one / SIDE:.0%}" for one in (_signed(int(right)), _signed(int(down)))]
        return _misaligned(f"are shifted against their masks, by {way[0]} of the side to the right and {way[1]} down")
    others = (objects * np.roll(masks, 1, axis=0)).sum(axis=(1, 2))
    if here.mean() < _UNRELATED or (here.mean() < 0.5 and here.mean() < others.mean() + 0.03):
        return _misaligned("do not show what their masks outline: pictures and masks of different samples are paired")
    return None


def _signed(pixels: int) -> int:
    return pixels - SIDE if pixels > SIDE // 2 else pixels


def _misaligned(what: str) -> Fault:
    return Fault(f"object pictures and masks do not fit: the object pictures {what}", True)
