"""What all samples of a shadow data set show together: levels, masks, names, conventions, labels, single lights.

Numbers of all samples (`numbers.py`) are at hand; of at most 128 the pictures are read again, to try conventions on.

Legend: n samples, S = 64 side of the reduced pictures.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowlab.data import Fault, Judgement, one_line
from shadowlab.seeding import permutation
from shadowlab.tasks.shadow import labels, picture_faults
from shadowlab.tasks.shadow.baselines import inflated_silhouette
from shadowlab.tasks.shadow.conventions import (
    PICTURE_CONVENTIONS,
    Explained,
    Scenes,
    View,
    best_convention,
    documented,
    explained,
    light_conventions,
    shifted_convention,
)
from shadowlab.tasks.shadow.geometry import Array, Floats, small
from shadowlab.tasks.shadow.light import RANGES
from shadowlab.tasks.shadow.numbers import Numbers
from shadowlab.tasks.shadow.pictures import Pictures
from shadowlab.tasks.shadow.suspects import drawn, suspects
from shadowlab.tasks.shadow.view import default_view

LEAST = 12
"""Samples; of fewer nothing is judged together."""
_MOST = 128  # samples that conventions are tried on
_MOST_OF_ONE = 8  # of one object, unless there are few objects
_LEAST_SCENES = 8
_GAMMA_SAMPLES = 32
_LEAST_PIXELS = 8
_GAMMA = (0.7, 1.75)  # power of the oracle's half shadows; of rendered sets, 1.1 to 1.2
_MANY_SUSPECTS = 0.03
_MORE = 0.03  # likeness that a convention adds to one light from above for all: 0.1 in rendered sets
_NUM_NAMED = 3


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that were read."""

    ids: Sequence[str]
    object_ids: Sequence[str]
    lights: Array
    """(n, 3) as the files have them, out of range, too; NaN where there is none."""
    before: Array
    """(n, 3) of the sample before, in the order of ids; `after` likewise."""
    after: Array
    numbers: Numbers
    looks: Sequence[int]
    """(n,) equal for equal object pictures."""
    are_tracks: bool
    """One object may have several names, as in the benchmark."""
    read: Callable[[int], Pictures | None]
    """row -> its pictures."""


def judge(samples: Samples) -> Judgement:
    """All that can be said."""
    if len(samples.ids) < LEAST:
        return Judgement(said=(f"geometry: {len(samples.ids)} samples are too few to judge (at least {LEAST})",))
    numbers = samples.numbers
    levels = picture_faults.level_faults(numbers)
    faults = [
        *levels,
        *([] if levels else picture_faults.object_faults(numbers, samples.looks)),
        *picture_faults.name_faults(samples.ids, samples.object_ids, samples.looks, is_meant=samples.are_tracks),
    ]
    marks = tuple(
        mark
        for mark, word in (("inverted mask", "masks: "), ("bright shadow", "shadow maps: "))
        if any(one.text.startswith(word) and "inverted" in one.text for one in faults)
    )
    faults += _constants(samples)
    if picture_faults.inverted_masks(numbers).mean() > 0.5:
        return Judgement(tuple(faults), ("geometry: not judged, for the masks show no objects",), marks=marks)
    scenes, rows, alignment = _scenes(samples)
    if alignment is not None:
        faults.append(alignment)
    if len(scenes) < _LEAST_SCENES:
        little = f"geometry: {len(scenes)} samples with a shadow and a light are too few to judge"
        return Judgement(tuple(faults), (little,), marks=marks)
    more, said, picture = _geometry(samples, scenes, rows, is_clean=alignment is None and not levels)
    return Judgement(tuple(_without_twins(faults + more)), tuple(said), picture, marks)


def _without_twins(faults: list[Fault]) -> list[Fault]:
    """A constant that the pictures contradict is an error, and no warning as well."""
    errors = " ".join(one.text for one in faults if one.is_error)
    return [
        one for one in faults if one.is_error or one.text.split(" samples")[0].removeprefix("lights: ") not in errors
    ]


def _constants(samples: Samples) -> list[Fault]:
    known = samples.lights[np.isfinite(samples.lights).all(axis=1)]
    if not len(known):
        return []
    return [
        Fault(f"lights: {name} is {value:g} for all samples: the model cannot learn what it does")
        for name, value in labels.constant_columns(known).items()
    ]


def _scenes(samples: Samples) -> tuple[Scenes, NDArray[np.int64], Fault | None]:
    """Samples that conventions are tried on, whole objects where they are small; and whether their masks fit."""
    bright = bool(picture_faults.inverted_shadows(samples.numbers).mean() > 0.5)
    groups: dict[str, list[int]] = defaultdict(list)
    seen = (samples.numbers["shadow_most"] > 0.1) & np.isfinite(samples.lights).all(axis=1)
    for row in np.flatnonzero(seen).tolist():
        groups[samples.object_ids[row]].append(row)
    names, chosen = list(groups), list[int]()
    most = max(_MOST_OF_ONE, _MOST // max(len(names), 1))
    for place in permutation(len(names), 0, "geometry").tolist():
        rows = groups[names[place]]
        chosen += [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)]
        if len(chosen) >= _MOST:
            break
    kept, masks, shadows = list[int](), list[Floats](), list[Floats]()
    outlines: dict[int, tuple[Floats, Floats]] = {}
    for row in sorted(set(chosen)):
        pictures = samples.read(row)
        if pictures is None:
            continue
        mask, shadow = small(pictures.mask), small(pictures.shadow)
        kept.append(row)
        masks.append(mask)
        shadows.append(1 - shadow if bright else shadow)
        if samples.looks[row] not in outlines:
            levels = np.stack([small((pictures.object[i : i + 1] + 1) / 2) for i in range(3)])
            outlines[samples.looks[row]] = picture_faults.edges(levels), picture_faults.edges(mask)
    alignment = None
    if outlines:
        objects, edges = (np.stack(one) for one in zip(*outlines.values(), strict=True))
        alignment = picture_faults.alignment_fault(objects, edges)
    places = np.array(kept, np.int64)
    empty = np.zeros((0, 64, 64), np.float32)
    scenes = Scenes(
        [samples.ids[row] for row in kept],
        samples.lights[places],
        np.stack(masks) if masks else empty,
        np.stack(shadows) if shadows else empty,
    )
    return scenes, places, alignment


def _geometry(
    samples: Samples, scenes: Scenes, rows: NDArray[np.int64], *, is_clean: bool
) -> tuple[list[Fault], list[str], NDArray[np.uint8] | None]:
    """Faults, what was judged, and a picture of single samples. is_clean: nothing is wrong with the pictures alone."""
    found, fault = _convention(scenes)
    convention, elevation = found.convention, found.elevation
    faults = [fault] if fault else []
    changed, lights = convention.pictures(scenes), convention.lights(scenes.lights)
    view = View(changed, elevation)
    if not faults:
        object_ids = [samples.object_ids[row] for row in rows]
        neighbours = labels.Neighbours(samples.before[rows], samples.after[rows])
        label = labels.label_fault(view, lights, object_ids, neighbours)
        if label is not None:
            return [label], [], None
    own, others = labels.follows(view, lights)
    little = "" if own - others > 0.05 else "; the lights differ too little to judge more"
    said = [
        f"geometry: {len(scenes)} samples tried, likeness {own:.2f} with each sample's own light, {others:.2f} with "
        f"another's{little}"
    ]
    picture = None
    if not faults and is_clean:
        faults += _of_right_directions(samples, changed)
        if not faults and np.isfinite(samples.lights).all():
            single, picture = _single_lights(samples, elevation)
            faults += [single] if single else []
    return faults, said, picture


def _convention(scenes: Scenes) -> tuple[Explained, Fault | None]:
    """The one that the data follow, and what is wrong where it is not the documented one."""
    right = documented(scenes)
    best = best_convention(scenes, [*light_conventions(scenes.lights), *PICTURE_CONVENTIONS])
    if (shift := shifted_convention(scenes, right.elevation)) is not None:
        shifted = explained(scenes, shift, right.elevation)
        best = shifted if shifted.likeness.mean() > best.likeness.mean() else best
    if not best.beats(right) or best.likeness.mean() < _from_above(scenes, best) + _MORE:
        return right, None
    text = (
        f"lights and shadows: {best.convention.said} (likeness {best.likeness.mean():.2f}, as documented "
        f"{right.likeness.mean():.2f}): {best.convention.fix}"
    )
    return best, Fault(text, is_error=True)


def _of_right_directions(samples: Samples, scenes: Scenes) -> list[Fault]:
    """What else may be wrong with lights and levels."""
    faults = _range_faults(samples)
    if np.isfinite(samples.lights).all():
        theta = labels.theta_fault(scenes)
        faults += [theta] if theta else []
        faults += labels.size_faults(samples.numbers, samples.lights)
    gamma = _gamma_fault(scenes, scenes.lights)
    return faults + ([gamma] if gamma else [])


def _from_above(scenes: Scenes, found: Explained) -> float:
    """Mean likeness under one light for all: what a convention explains that knows nothing of the lights."""
    view = View(found.convention.pictures(scenes), found.elevation)
    return float(view.likeness(np.tile([8.0, 0.0, 4.0], (len(scenes), 1))).mean())


def _range_faults(samples: Samples) -> list[Fault]:
    """Lights that are right but for their range: phi from -180 to 180."""
    phi = samples.lights[:, 1]
    low, high = RANGES["phi"]
    if np.mean((phi < low) | (phi > high)) > 0.02 and (np.abs(phi) <= 720).all():
        return [
            Fault(f"lights: phi lies outside of [{low:g}, {high:g}], but falls as it should: phi = phi % 360", True)
        ]
    return []


def _gamma_fault(scenes: Scenes, lights: Array) -> Fault | None:
    """Whether half shadows are as dark as the oracle's: a gamma curve changes them, and neither black nor white.

    The pixels of both maps are put in order; of those of one rank, the logarithms are compared.
    """
    powers = []
    view = default_view()
    every = max(1, len(scenes) // _GAMMA_SAMPLES)
    for mask, shadow, light in zip(scenes.masks[::every], scenes.shadows[::every], lights[::every], strict=True):
        if not all(low <= value <= high for value, (low, high) in zip(light, RANGES.values(), strict=True)):
            continue
        theta, phi, size = light.tolist()
        solid = mask >= min(0.5, float(mask.max()))
        hoped = np.sort(inflated_silhouette(solid, theta, phi, size, view), axis=None)
        found = np.sort(shadow, axis=None)
        half = (hoped > 0.15) & (hoped < 0.85) & (found > 0.005) & (found < 0.995)
        if half.sum() >= _LEAST_PIXELS:
            powers.append(float(np.median(np.log(found[half]) / np.log(hoped[half]))))
    if len(powers) < _LEAST_SCENES:
        return None
    power = float(np.median(powers))
    if _GAMMA[0] < power < _GAMMA[1]:
        return None
    weaker, fix = ("weaker", "1 / 2.2") if power > 1 else ("darker", "2.2")
    return Fault(
        f"shadow maps: half shadows are much {weaker} than light makes them, as of another gamma (about {power:.2g}); "
        f"save linear values: value ** ({fix}), of values in [0, 1]",
        True,
    )


def _single_lights(samples: Samples, elevation: float) -> tuple[Fault | None, NDArray[np.uint8] | None]:
    def read(row: int) -> tuple[Floats, Floats] | None:
        pictures = samples.read(row)
        return None if pictures is None else (small(pictures.mask), small(pictures.shadow))

    found = suspects(samples.numbers, samples.lights, elevation, read)
    if not found:
        return None, None
    named = ", ".join(
        f"{one_line(samples.ids[one.row])} ({one.own:.2f}; {one.best:.2f} with {one_line(samples.ids[one.other])}'s)"
        for one in found[:_NUM_NAMED]
    )
    more = ", ..." if len(found) > _NUM_NAMED else ""
    fault = Fault(
        f"lights: {len(found)} of {len(samples.ids)} shadows are explained much better by another sample's light: "
        f"{named}{more}; correct their lights",
        is_error=len(found) >= max(3, _MANY_SUSPECTS * len(samples.ids)),
    )
    return fault, drawn(found)
