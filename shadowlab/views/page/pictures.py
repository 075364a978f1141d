"""A run's sample pictures inside the page; too many or too large ones are left out or made smaller, and said to be."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from shadowlab.views.page.wording import count

_MAX_PICTURES = 8
_MAX_BYTES = 400 * 1024  # of one; larger ones are made smaller
_MAX_SIDE = 1024  # pixels, then


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


@dataclass(frozen=True)
class Gallery:
    """The pictures of samples/."""

    pictures: tuple[Picture, ...]
    """In the order of their names."""
    notes: tuple[str, ...] = ()
    """What is left out, and why."""

    @classmethod
    def of(cls, folder: Path) -> "Gallery":
        files = sorted(folder.glob("*.png"))
        chosen = _spread(files)
        pictures, notes = [], []
        for file in chosen:
            try:
                pictures.append(_picture(file))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow raises
                notes.append(f"{file}: no picture ({type(error).__name__}), left out")
        if len(files) > len(chosen):
            left = count(len(files) - len(chosen), "picture")
            notes.append(f"{left} of {len(files)} left out, evenly, the first and the last kept; all are in {folder}")
        return cls(tuple(pictures), tuple(notes))


def _spread(files: Sequence[Path]) -> list[Path]:
    """At most `_MAX_PICTURES`, evenly, the first and the last among them."""
    if len(files) <= _MAX_PICTURES:
        return list(files)
    last = len(files) - 1
    return [files[round(i * last / (_MAX_PICTURES - 1))] for i in range(_MAX_PICTURES)]


def _picture(file: Path) -> Picture:
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        width, height = picture.size
        if len(content) <= _MAX_BYTES:
            return Picture(file.stem, _address(content, "png"), width, height)
        small = picture.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    note = f"made smaller, from {width} x {height}; the original is {file.name}"
    return Picture(file.stem, _address(buffer.getvalue(), "webp"), *small.size, note)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
