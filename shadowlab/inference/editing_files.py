"""`shadowlab generate --image` with a model of an edit: pictures of a user's own to edited ones."""

import time
from dataclasses import dataclass
from pathlib import Path

from shadowlab.console import Reporter
from shadowlab.data import one_line
from shadowlab.errors import UserError
from shadowlab.inference.model import Weights, open_model
from shadowlab.inference.picture_files import picture_files, require_new, save_levels
from shadowlab.inference.sampling import load_generator
from shadowlab.plain_text import counted
from shadowlab.tasks.editing import EditingGenerator, check_options


@dataclass(frozen=True)
class EditingRequest:
    """What a user asks for."""

    image: Path
    """A PNG or JPEG file, or a folder of them."""
    out: Path
    """A PNG file; of a folder, a folder: files keep their names."""
    mask: Path | None = None
    """Of object-removal: a file, or of a folder a folder with a PNG of each picture's name; white is the object with
    its shadow."""
    steps: int = 1
    seed: int = 0
    resolution: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError where something is wrong that can be said without a model."""
        check_options(self.steps, self.seed, 8 if self.resolution is None else self.resolution, prefix="--")
        if not self.image.exists():
            raise UserError(f"{one_line(str(self.image))}: no such picture or folder")
        if self.mask is not None and self.mask.is_dir() != self.image.is_dir():
            raise UserError("--mask: of a picture a file, of a folder of pictures a folder")

    def files(self) -> list[tuple[Path, Path, Path | None]]:
        """Picture, its result's file, its mask. Raises UserError where one is missing."""
        found = []
        for picture, out in picture_files(self.image, self.out):
            mask = self.mask
            if mask is not None and self.image.is_dir():
                mask = mask / f"{picture.stem}.png"
            if mask is not None and not mask.is_file():
                raise UserError(f"{one_line(str(mask))}: no such mask; give one of each picture")
            found.append((picture, out, mask))
        return found


def write_edits(
    place: str,
    request: EditingRequest,
    reporter: Reporter,
    *,
    device: str | None = None,
    overwrite: bool = False,
    weights: Weights = "ema",
) -> None:
    """Edit each picture, and say what was written.

    Raises:
        UserError: there is no such model or picture, a file is there already, or a result cannot be written.
    """
    began = time.monotonic()
    files = request.files()
    require_new([out for _, out, _ in files], overwrite=overwrite)
    model = open_model(place, device=device, weights=weights)
    generator: EditingGenerator = load_generator(model)
    edit = generator.edit
    if edit.has_mask and request.mask is None:
        raise UserError(f"{model.name}: a model of {edit.name}; add --mask FILE: white is the object with its shadow")
    if not edit.has_mask and request.mask is not None:
        raise UserError(f"--mask: {model.name} is a model of {edit.name}, which has no mask; leave it out")
    side = request.resolution or generator.image_size
    reporter.say(f"{model.text}, on {model.device}, {edit.title}, worked on at {side} x {side} pixels")
    for picture, out, mask in files:
        found = generator.generate(picture, mask, steps=request.steps, seed=request.seed, resolution=request.resolution)
        save_levels(out, found)
    kept = f"; it keeps {edit.keeps}" if generator.keep_input and edit.keeps else ""
    seconds = time.monotonic() - began
    what = f"{counted(len(files), 'picture')}, {edit.title}" if len(files) > 1 else edit.title
    reporter.conclude(
        f"{request.out}: {what}, {counted(request.steps, 'step')}, seed {request.seed}{kept}; {seconds:.1f} s",
        style="bold green",
    )
    reporter.result(
        {
            "passed": True,
            "model": model.text,
            "edit": edit.name,
            "keep_input": generator.keep_input,
            "out": str(request.out),
            "written": len(files),
            "seconds": round(seconds, 2),
        }
    )
