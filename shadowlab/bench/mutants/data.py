"""Data sets with one fault each, made from a sound one: what `shadowlab data check` must find and name.

A mutant reads a data set in the folder layout and writes a faulty copy of it. Nothing of the source is changed, and the
same source gives the same bytes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from math import pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diagnostics.files import read_bytes, read_text, replace, replace_text

Levels = NDArray[np.uint8]
Change = Callable[["_Set"], None]
_ROLES = ("objects", "masks", "shadows")


class FaultySet(NamedTuple):
    """A fault in a data set."""

    name: str
    make: Callable[[Path, Path], None]
    """(folder to read, folder to make)."""
    said: str
    """Regular expression: a line of the check that names the fault, with the conversion where there is one."""
    is_error: bool = True
    """Training on it would be wrong; False: it may be meant, and a warning is right."""


@dataclass
class _Set:
    """A data set in memory, as far as a fault needs it."""

    source: Path
    metadata: dict[str, dict[str, Any]]
    changed: dict[tuple[str, str], Levels] = field(default_factory=dict)
    """(folder, id) -> picture that takes the place of the source's."""
    copies: dict[str, str] = field(default_factory=dict)
    """New id -> id whose pictures it has."""

    @property
    def ids(self) -> list[str]:
        return sorted(self.metadata)

    def picture(self, role: str, sample: str) -> Levels:
        return np.asarray(Image.open(BytesIO(read_bytes(self.source / role / f"{sample}.png"))))

    def lights(self) -> NDArray[np.float64]:
        """(n, 3) theta, phi, size in the order of `ids`."""
        keys = ("theta", "phi", "size")
        return np.array([[float(self.metadata[one][key]) for key in keys] for one in self.ids])

    def set_lights(self, lights: NDArray[np.float64]) -> None:
        for sample, (theta, phi, size) in zip(self.ids, lights.round(5).tolist(), strict=True):
            self.metadata[sample] |= {"theta": theta, "phi": phi, "size": size}

    def write(self, out: Path) -> None:
        for role in _ROLES:
            (out / role).mkdir(parents=True)
            for file in sorted((self.source / role).glob("*.png")):
                if (role, file.stem) not in self.changed:
                    replace(out / role / file.name, read_bytes(file))
        for sample, original in self.copies.items():
            for role in _ROLES:
                replace(out / role / f"{sample}.png", read_bytes(self.source / role / f"{original}.png"))
        for (role, sample), levels in self.changed.items():
            encoded = BytesIO()
            Image.fromarray(np.ascontiguousarray(levels)).save(encoded, format="PNG")
            replace(out / role / f"{sample}.png", encoded.getvalue())
        replace_text(out / "metadata.json", json.dumps(self.metadata, indent=1) + "\n")


def _make(change: Change, source: Path, out: Path) -> None:
    data = _Set(source, json.loads(read_text(source / "metadata.json")))
    change(data)
    data.write(out)


# Lights


def _lights(data: _Set, change: Callable[[NDArray[np.float64]], None]) -> None:
    lights = data.lights()
    change(lights)
    data.set_lights(lights)


def _phi(data: _Set, sign: int, turn: float) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights[:, 1] = (sign * lights[:, 1] + turn) % 360.0

    _lights(data, change)


def _signed_phi(data: _Set) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights[:, 1] = np.where(lights[:, 1] > 180, lights[:, 1] - 360, lights[:, 1])

    _lights(data, change)


def _scaled(data: _Set, theta: float = 1.0, phi: float = 1.0, size: float = 1.0) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights *= (theta, phi, size)

    _lights(data, change)


def _minus(data: _Set, column: int, whole: float) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights[:, column] = whole - lights[:, column]

    _lights(data, change)


def _constant(data: _Set, column: int, value: float) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights[:, column] = value

    _lights(data, change)


def _exchanged(data: _Set, factor: float = 1.0) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights[:, :2] = np.stack([lights[:, 1] / factor, lights[:, 0] * factor], axis=1)

    _lights(data, change)


def _shuffled_column(data: _Set, column: int) -> None:
    def change(lights: NDArray[np.float64]) -> None:
        lights[:, column] = np.random.default_rng(0).permutation(lights[:, column])

    _lights(data, change)


def _shuffled(data: _Set) -> None:
    data.set_lights(np.random.default_rng(0).permutation(data.lights()))


def _next(data: _Set, by: int) -> None:
    data.set_lights(np.roll(data.lights(), by, axis=0))


def _shuffled_within(data: _Set) -> None:
    """Each object's lights are handed on by one sample."""
    lights, groups = data.lights(), _groups(data)
    for rows in groups.values():
        lights[rows] = lights[np.roll(rows, 1)]
    data.set_lights(lights)


def _some_wrong(data: _Set, every: int) -> None:
    """Each `every`-th sample has the light from the other side."""
    lights = data.lights()
    lights[::every, 1] = (lights[::every, 1] + 180) % 360
    data.set_lights(lights)


def _groups(data: _Set) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, sample in enumerate(data.ids):
        groups.setdefault(data.metadata[sample].get("object", sample), []).append(row)
    return groups


# Pictures


def _pictures(data: _Set, roles: tuple[str, ...], change: Callable[[Levels], Levels]) -> None:
    for role in roles:
        for sample in data.ids:
            data.changed[role, sample] = change(data.picture(role, sample))


def _left_right(levels: Levels) -> Levels:
    return levels[:, ::-1]


def _upside_down(levels: Levels) -> Levels:
    return levels[::-1]


def _negative(levels: Levels) -> Levels:
    return 255 - levels


def _turned(levels: Levels, quarters: int) -> Levels:
    return np.rot90(levels, quarters)


def _moved(levels: Levels, right: float, down: float) -> Levels:
    """By fractions of the side; what leaves at one border is lost, what comes in is as the corner."""
    height, width = levels.shape[:2]
    dx, dy = round(right * width), round(down * height)
    moved = np.full_like(levels, 0)
    moved[:] = levels[0, 0]
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = levels[
        max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
    ]
    return moved


def _two_levels(levels: Levels) -> Levels:
    return np.where(levels >= 128, 255, 0).astype(np.uint8)


def _two_levels_low(levels: Levels) -> Levels:
    return np.where(levels >= 26, 255, 0).astype(np.uint8)


def _gamma(levels: Levels, power: float) -> Levels:
    return ((levels / 255.0) ** power * 255).round().astype(np.uint8)


def _halved(levels: Levels) -> Levels:
    return levels // 2


def _mask_with_shadow(data: _Set) -> None:
    for sample in data.ids:
        shadow = data.picture("shadows", sample)
        data.changed["masks", sample] = np.maximum(data.picture("masks", sample), _two_levels_low(shadow))


def _handed_on(data: _Set, role: str) -> None:
    """Each object's pictures of one role go to the next object."""
    groups = list(_groups(data).values())
    for rows, others in zip(groups, groups[1:] + groups[:1], strict=True):
        for place, row in enumerate(rows):
            other = data.ids[others[place % len(others)]]
            data.changed[role, data.ids[row]] = data.picture(role, other)


# Names


def _several_names(data: _Set) -> None:
    """Each sample is an object of its own."""
    for number, sample in enumerate(data.ids):
        data.metadata[sample]["object"] = f"thing_{number:05d}"


def _duplicates(data: _Set) -> None:
    """Each third sample a second time, as another object."""
    for sample in data.ids[::3]:
        copy = f"copy_of_{sample}"
        data.copies[copy] = sample
        data.metadata[copy] = {**data.metadata[sample], "object": f"copy_{data.metadata[sample].get('object', sample)}"}


def _of_lights() -> Mapping[str, tuple[Change, str]]:
    return {
        "phi-mirrored": (partial(_phi, sign=-1, turn=0), r"phi = \(360 - phi\) % 360"),
        "phi-mirrored-left-right": (partial(_phi, sign=-1, turn=180), r"phi = \(180 - phi\) % 360"),
        "phi-half-turn": (partial(_phi, sign=1, turn=180), r"phi = \(phi \+ 180\) % 360"),
        "phi-quarter-turn": (partial(_phi, sign=1, turn=90), r"phi = \(phi \+ 270\) % 360"),
        "phi-three-quarters": (partial(_phi, sign=1, turn=270), r"phi = \(phi \+ 90\) % 360"),
        "phi-of-a-compass": (partial(_phi, sign=-1, turn=90), r"phi = \(90 - phi\) % 360"),
        "phi-of-a-compass-turned": (partial(_phi, sign=-1, turn=270), r"phi = \(270 - phi\) % 360"),
        "phi-signed": (_signed_phi, r"phi = phi % 360"),
        "theta-from-horizon": (partial(_minus, column=0, whole=90.0), r"theta = 90 - theta"),
        "theta-reversed": (partial(_minus, column=0, whole=45.0), r"theta = 45 - theta"),
        "exchanged": (_exchanged, r"theta, phi = phi, theta"),
        "exchanged-rescaled": (partial(_exchanged, factor=8.0), r"theta, phi = phi / 8, theta \* 8"),
        "radians": (partial(_scaled, theta=pi / 180, phi=pi / 180), r"theta \* 180 / pi.*phi = phi \* 180 / pi"),
        "phi-in-radians": (partial(_scaled, phi=pi / 180), r"phi = phi \* 180 / pi"),
        "theta-in-radians": (partial(_scaled, theta=pi / 180), r"theta = theta \* 180 / pi"),
        "phi-in-turns": (partial(_scaled, phi=1 / 360), r"phi = phi \* 360"),
        "phi-constant": (partial(_constant, column=1, value=90.0), r"phi is 90 for all"),
        "theta-constant": (partial(_constant, column=0, value=30.0), r"theta is 30 for all"),
        "size-constant": (partial(_constant, column=2, value=4.0), r"size is 4 for all"),
        "size-reversed": (partial(_minus, column=2, whole=10.0), r"size = 10 - size"),
        "size-shuffled": (partial(_shuffled_column, column=2), r"size: .*not explain"),
        "phi-shuffled": (partial(_shuffled_column, column=1), r"shuffled"),
        "lights-shuffled": (_shuffled, r"shuffled"),
        "lights-shuffled-within-objects": (_shuffled_within, r"within objects"),
        "lights-of-the-next-sample": (partial(_next, by=-1), r"sample before"),
        "lights-of-the-sample-before": (partial(_next, by=1), r"sample after"),
        "some-lights-wrong": (partial(_some_wrong, every=6), r"another sample's light"),
    }  # fmt: skip


def _of_pictures() -> Mapping[str, tuple[Change, str]]:
    def pictures(roles: str, change: Callable[[Levels], Levels]) -> Change:
        return partial(_pictures, roles=tuple(roles.split()), change=change)

    everything = "objects masks shadows"
    return {
        "pictures-mirrored": (pictures(everything, _left_right), r"mirrored left to right"),
        "pictures-upside-down": (pictures(everything, _upside_down), r"upside down"),
        "shadows-mirrored": (pictures("shadows", _left_right), r"mirrored left to right"),
        "shadows-upside-down": (pictures("shadows", _upside_down), r"shadow maps.*upside down"),
        "shadows-turned": (pictures("shadows", partial(_turned, quarters=1)), r"shadow maps.*turned"),
        "shadows-turned-half": (pictures("shadows", partial(_turned, quarters=2)), r"shadow maps.*turned"),
        "shadows-shifted": (pictures("shadows", partial(_moved, right=0.15, down=0.0)), r"shadow maps.*shifted"),
        "shadows-shifted-up": (pictures("shadows", partial(_moved, right=0.0, down=-0.12)), r"shadow maps.*shifted"),
        "shadows-inverted": (pictures("shadows", _negative), r"shadow maps.*inverted.*255 - value"),
        "shadows-binarised": (pictures("shadows", _two_levels), r"shadow maps.*two levels"),
        "shadows-binarised-low": (pictures("shadows", _two_levels_low), r"shadow maps.*two levels"),
        "shadows-brighter-gamma": (pictures("shadows", partial(_gamma, power=1 / 2.2)), r"shadow maps.*gamma"),
        "shadows-darker-gamma": (pictures("shadows", partial(_gamma, power=2.2)), r"shadow maps.*gamma"),
        "shadows-halved": (pictures("shadows", _halved), r"shadow maps.*never"),
        "shadows-of-another-object": (partial(_handed_on, role="shadows"), r"shuffled|another object"),
        "masks-inverted": (pictures("masks", _negative), r"masks: .*inverted.*255 - value"),
        "masks-with-shadow": (_mask_with_shadow, r"masks: .*contain .*shadow"),
        "masks-mirrored": (pictures("masks", _left_right), r"object pictures.*masks"),
        "masks-shifted": (pictures("masks", partial(_moved, right=0.12, down=0.0)), r"object pictures.*masks"),
        "objects-mirrored": (pictures("objects", _left_right), r"object pictures.*masks"),
        "objects-upside-down": (pictures("objects", _upside_down), r"object pictures.*masks"),
        "objects-shifted": (pictures("objects", partial(_moved, right=0.0, down=0.1)), r"object pictures.*masks"),
        "objects-of-another-sample": (partial(_handed_on, role="objects"), r"object pictures.*masks"),
        "objects-binarised": (pictures("objects", _two_levels), r"object pictures.*two levels"),
        "objects-under-several-names": (_several_names, r"under several names"),
        "duplicates": (_duplicates, r"under several names|nearly the same"),
    }  # fmt: skip


_MEANT = ("size-constant", "size-shuffled", "shadows-halved")

DATA_MUTANTS: tuple[FaultySet, ...] = tuple(
    FaultySet(name, partial(_make, change), said, name not in _MEANT)
    for name, (change, said) in {**_of_lights(), **_of_pictures()}.items()
)
"""Each fault alone, in copies of a sound folder."""
