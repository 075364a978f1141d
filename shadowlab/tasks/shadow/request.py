"""What a user asks of `generate`: an object, a light, and how the result is shown. Judged before a file is read.

Legend: H W pixels of the object's picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shadowlab.errors import UserError
from shadowlab.tasks.shadow.compositing import DEFAULT_INTENSITY, TRANSPARENT, Colour, Fit, check_intensity
from shadowlab.tasks.shadow.generate import MOST_SEED, check_seed, check_steps
from shadowlab.tasks.shadow.light import RANGES, Light, check_light
from shadowlab.tasks.shadow.light_presets import preset_light

Swept = Literal["theta", "phi", "size"]
MOST_SAMPLES = 1000
MOST_FRAMES = 360
STRIP_FRAMES, GIF_FRAMES = 8, 24


@dataclass(frozen=True)
class Style:
    """How results are drawn and shown: the same for all rows of a list."""

    samples: int = 1
    """Seeds that follow one another; their maps are averaged."""
    side_by_side: bool = False
    """The samples next to one another in place of their average."""
    sweep: Swept | None = None
    """The value of the light that runs over its range."""
    frames: int | None = None
    """Values of a sweep; None: 8 in a strip, 24 in a GIF."""
    fit: Fit = "same"
    colour: Colour = (0, 0, 0)
    """Of a full shadow in a composite."""
    bits: int = 8
    """Of a shadow map."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise UserError(f"--samples {self.samples}: give 1 to {MOST_SAMPLES}")
        if self.frames is not None and not 2 <= self.frames <= MOST_FRAMES:
            raise UserError(f"--frames {self.frames}: give 2 to {MOST_FRAMES}")
        if self.frames is not None and self.sweep is None:
            raise UserError("--frames: counts the values of a --sweep; leave it out")
        if self.sweep is not None and self.side_by_side:
            raise UserError("--sweep and --side-by-side exclude each other: both put pictures next to one another")
        if self.bits not in (8, 16):
            raise UserError(f"--bits {self.bits}: 8 or 16")
        if self.bits == 16 and (self.sweep is not None or self.side_by_side):
            raise UserError("--bits 16: a strip has 8 bits; 16 are for one shadow map")


@dataclass(frozen=True)
class ShadowRequest:
    """One file to be written. Values are in range."""

    object: Path
    mask: Path | None
    light: Light
    out: Path
    steps: int = 1
    seed: int = 0
    background: str | None = None
    """None: the result is the shadow map; else as `read_background` takes it, and the result is the composite."""
    intensity: float = DEFAULT_INTENSITY
    style: Style = field(default_factory=Style)
    where: str = ""
    """Row of a list, for messages; empty for a single one."""

    def lights(self) -> list[tuple[str, Light]]:
        """Labels and lights of the pictures: one, or those of the sweep."""
        name = self.style.sweep
        if name is None:
            return [("", self.light)]
        low, high = RANGES[name]
        frames = self.style.frames or (GIF_FRAMES if self.is_animation else STRIP_FRAMES)
        gaps = frames if name == "phi" else frames - 1  # 360 degrees are 0 again
        place, found = list(RANGES).index(name), []
        for number in range(frames):
            value = low + (high - low) * number / gaps
            light = (*self.light[:place], value, *self.light[place + 1 :])
            found.append((f"{name} {value:.4g}", light))
        return found  # type: ignore[return-value]

    @property
    def is_animation(self) -> bool:
        return self.out.suffix.lower() == ".gif"


def make_request(values: Mapping[str, Any], style: Style, *, where: str = "") -> ShadowRequest:
    """A request from values that were given by name, None where they were not.

    Args:
        values: object, mask, light (a preset's name), theta, phi, size, steps, seed, background, intensity, out.
        where: row of a list.

    Raises:
        UserError: something is missing, out of range or has no meaning with the rest; one line, without `where`.
    """
    for name in ("object", "out"):
        if values.get(name) is None:
            raise UserError(f"{_called(name, where)} is missing")
    given = {name: value for name, value in values.items() if value is not None}
    light = _light(given, style, where)
    request = ShadowRequest(
        object=Path(given["object"]),
        mask=None if "mask" not in given else Path(given["mask"]),
        light=light,
        out=Path(given["out"]),
        steps=given.get("steps", 1),
        seed=given.get("seed", 0),
        background=given.get("background"),
        intensity=given.get("intensity", DEFAULT_INTENSITY),
        style=style,
        where=where,
    )
    check_steps(request.steps)
    check_seed(request.seed)
    if request.seed + style.samples - 1 > MOST_SEED:
        raise UserError(f"seed = {request.seed}: no room for {style.samples} samples; give a smaller one")
    check_intensity(request.intensity)
    _check_result(request, "intensity" in given)
    return request


def _light(given: Mapping[str, Any], style: Style, where: str) -> Light:
    """The preset, with the values over it that were given; a swept one need not be."""
    preset = dict(zip(RANGES, preset_light(given["light"]), strict=True)) if "light" in given else {}
    if style.sweep is not None and style.sweep in given:
        raise UserError(f"{_called(style.sweep, where)}: --sweep {style.sweep} gives its values; leave one of both out")
    if style.sweep is not None:
        preset.setdefault(style.sweep, RANGES[style.sweep][0])
    light = preset | {name: given[name] for name in RANGES if name in given}
    missing = [name for name in RANGES if name not in light]
    if missing:
        low, high = RANGES[missing[0]]
        raise UserError(
            f"{_called(missing[0], where)} is missing: give {low:g} to {high:g}, or a light by name (noon, soft, ..)"
        )
    for name, value in light.items():  # one at a time, so that the message names it alone
        lows = {key: bounds[0] for key, bounds in RANGES.items()}
        check_light(**{**lows, name: value}, where=_called(name, where))
    return light["theta"], light["phi"], light["size"]


def _check_result(request: ShadowRequest, has_intensity: bool) -> None:
    style, suffix = request.style, request.out.suffix.lower()
    if suffix not in (".png", ".gif"):
        raise UserError(f"{request.out}: results are PNG files (of a --sweep also GIF); end the name in .png")
    if suffix == ".gif" and style.sweep is None:
        raise UserError(f"{request.out}: a GIF shows a --sweep; end the name in .png, or add --sweep phi")
    if request.background is None:
        if has_intensity or style.colour != (0, 0, 0) or style.fit != "same":
            raise UserError("intensity, shadow colour and fit belong to a composite: add --background FILE or a colour")
        return
    if style.bits == 16:
        raise UserError("--bits 16: a composite has 8 bits, as its pictures have; 16 are for the shadow map")
    if suffix == ".gif" and request.background == TRANSPARENT:
        raise UserError(f"{request.out}: a GIF has no soft transparency; end the name in .png, or give a background")


def _called(name: str, where: str) -> str:
    """`--theta` on the command line, `theta` in a list, which says the column itself."""
    return name if where else f"--{name}"
