"""Pictures of the samples that are picked: what every method makes of them, and where it is wrong.

    OUT/pictures/TRACK-worst-1.png     object, then a column a method; truth, then the error below each

Legend: C channels, H W pixels.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diagnostics.files import reason_of, replace
from shadowlab.drawing import to_image, with_header
from shadowlab.errors import UserError
from shadowlab.evaluation.subject import Subject
from shadowlab.evaluation.summary import Picked

FOLDER = "pictures"
_PAGE_SIDE = 192  # pixels of a picture on the page
_FILE_SIDE = 512  # of one in a file, at most
_TOO_MUCH, _MISSING = (0.80, 0.12, 0.10), (0.05, 0.30, 0.75)


@dataclass(frozen=True)
class Cell:
    """One picture on the page."""

    caption: str
    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A picked sample."""

    picked: Picked
    sample: str
    conditions: str
    """For people."""
    cells: tuple[Cell, ...]
    """What is given, the truth; then of each method its picture and its error."""


def draw_picked(subject: Subject, picked: Picked, folder: Path) -> Shown:
    """Make the pictures of one sample again, with the first seed, and write them as one file below `folder`.

    Raises:
        UserError: the file cannot be written.
    """
    batch = subject.batch(picked.number)
    truth = subject.task.target(batch)[0]
    given = next(iter(subject.evaluation.shown(batch).items()))
    made = [(method.name, method.first(batch)[0]) for method in subject.methods]
    cells = [given, ("truth", _colours(truth))]
    for name, picture in made:
        cells += [(name, _colours(picture)), (f"error of {name}", error_map(picture, truth))]
    top = [to_image(given[1]), *(to_image(_colours(picture)) for _, picture in made)]
    bottom = [to_image(_colours(truth)), *(to_image(error_map(picture, truth)) for _, picture in made)]
    file = folder / FOLDER / f"{_plain(picked.track)}-{_plain(picked.word)}.png"
    _write(file, _grid(top, bottom, ("", *(name for name, _ in made))))
    return Shown(
        picked,
        subject.data.ids[picked.number],
        subject.evaluation.caption(batch),
        tuple(_cell(name, picture) for name, picture in cells),
    )


def error_map(picture: Tensor, truth: Tensor) -> Tensor:
    """(C, H, W) twice -> (3, H, W) in [0, 1]: white where they agree, red where `picture` has more, blue where it has
    less; full colour at a difference of 1/2, as the mean over channels."""
    difference = (picture - truth).mean(dim=0).mul(2).clamp(-1, 1)
    red, blue = (torch.tensor(colour).view(3, 1, 1) for colour in (_TOO_MUCH, _MISSING))
    more, less = difference.clamp_min(0), (-difference).clamp_min(0)
    return 1 - more * (1 - red) - less * (1 - blue)


def _colours(picture: Tensor) -> Tensor:
    """(C, H, W) -> (3, H, W)."""
    return picture.expand(3, -1, -1) if len(picture) == 1 else picture[:3]


def _cell(caption: str, picture: Tensor) -> Cell:
    image = to_image(picture)
    image.thumbnail((_PAGE_SIDE, _PAGE_SIDE), Image.Resampling.BOX)
    return Cell(caption, _png(image), *image.size)


def _grid(top: list[Image.Image], bottom: list[Image.Image], names: tuple[str, ...]) -> Image.Image:
    side = min(_FILE_SIDE, top[0].width)
    canvas = Image.new("RGB", (side * len(top), side * 2), "white")
    for row, pictures in enumerate((top, bottom)):
        for column, picture in enumerate(pictures):
            canvas.paste(picture.resize((side, side), Image.Resampling.BOX), (column * side, row * side))
    return with_header(canvas, names)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _write(file: Path, image: Image.Image) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, _png(image))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({reason_of(error)}); give another --out") from error


def _plain(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")
