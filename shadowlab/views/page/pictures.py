"""A run's sample pictures inside the page; too many or too large ones are left out or made smaller, and said to be.

A picture belongs to a series by the name of its file: `step-00000100.png` to the comparisons, and
`light-sweep-step-00000100.png` to those of that name. The last of each series is always shown.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diagnostics.files import paths_in, read_bytes
from shadowlab.plain_text import counted

_MAX_PICTURES = 8
_MAX_BYTES = 400 * 1024  # of one; larger ones are made smaller
_MAX_SIDE = 1024  # pixels, then
_MAX_PIXELS = 2**26  # a small file may hold a hundred times as many
_MAX_TRIES = 3  # files of a series that are opened until one is a picture
_OF_A_STEP = re.compile(r"(?:(?P<series>.+)-)?step-(?P<step>\d+)")
_SERIES = {"": "comparison", "overfit": "memorised samples", "input": "input of the check"}


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    name: str
    """Of its file, without the ending."""
    address: str
    """A data URI."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    note: str = ""
    """How it differs from the file, where it does."""
    is_last: bool = False
    """Whether it is the last of its series."""

    @property
    def title(self) -> str:
        """`Light sweep, step 100`."""
        series, step = _place(self.name)
        words = _SERIES.get(series, series.replace("-", " ").replace("_", " "))
        words = words[:1].upper() + words[1:]
        return words if step is None else f"{words}, step {step:,}"


@dataclass(frozen=True)
class Gallery:
    """The pictures of samples/."""

    pictures: tuple[Picture, ...]
    """The last of each series, then earlier ones in the order of their steps."""
    notes: tuple[str, ...] = ()
    """What is left out, and why."""

    @classmethod
    def of(cls, folder: Path) -> "Gallery":
        files = sorted(paths_in(folder, "*.png", inside=folder.parent), key=lambda file: _order(file.stem))
        notes: list[str] = []
        pictures, tried = _last_ones(files, notes)
        others = [file for file in files if file not in tried]
        chosen = _spread(others, _MAX_PICTURES - len(pictures))
        for file in chosen:
            picture = _picture(file, notes)
            pictures += [] if picture is None else [picture]
        if len(others) > len(chosen):
            left = counted(len(others) - len(chosen), "picture")
            notes.append(
                f"{left} of {len(files)} left out, evenly; the last of each kind is kept, and all are in {folder}"
            )
        return cls(tuple(pictures), tuple(notes))


def _place(name: str) -> tuple[str, int | None]:
    """Series and step of a file's name; the name itself where it is of no step."""
    found = _OF_A_STEP.fullmatch(name)
    return (found["series"] or "", int(found["step"])) if found else (name, None)


def _order(name: str) -> tuple[int, str]:
    series, step = _place(name)
    return -1 if step is None else step, series


def _last_ones(files: Sequence[Path], notes: list[str]) -> tuple[list[Picture], set[Path]]:
    """The last picture of each series that can be read, the comparisons first, and the files that were looked at for
    it; appends what cannot be read."""
    series: dict[str, list[Path]] = {}
    for file in files:
        name, step = _place(file.stem)
        if step is not None:
            series.setdefault(name, []).append(file)
    found: list[Picture] = []
    tried: set[Path] = set()
    for name in sorted(series)[:_MAX_PICTURES]:
        for file in series[name][: -_MAX_TRIES - 1 : -1]:
            tried.add(file)
            picture = _picture(file, notes, is_last=True)
            if picture is not None:
                found.append(picture)
                break
    return found, tried


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """At most `most`, evenly, the first and the last among them."""
    if len(files) <= most:
        return list(files)
    if most < 2:
        return list(files[:most])
    last = len(files) - 1
    return [files[round(i * last / (most - 1))] for i in range(most)]


def _picture(file: Path, notes: list[str], *, is_last: bool = False) -> Picture | None:
    """None, and a note, where it is none."""
    try:
        return _read(file, is_last=is_last)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow raises
        notes.append(f"{file}: no picture ({type(error).__name__}), left out")
        return None


def _read(file: Path, *, is_last: bool) -> Picture:
    content = read_bytes(file, inside=file.parents[1])
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:  # of others Pillow starts programs
        width, height = picture.size
        if width * height > _MAX_PIXELS:
            raise ValueError("too many pixels")
        picture.load()
        if len(content) <= _MAX_BYTES:
            return Picture(file.stem, _address(content, "png"), width, height, is_last=is_last)
        small = picture.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    note = f"made smaller, from {width} x {height}; the original is {file.name}"
    return Picture(file.stem, _address(buffer.getvalue(), "webp"), *small.size, note, is_last)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
