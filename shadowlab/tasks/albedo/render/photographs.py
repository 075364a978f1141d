"""Photographs as surfaces: PNG and JPEG files of a folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shadowlab.data import colour_levels, decode, one_line, read_file
from shadowlab.errors import UserError
from shadowlab.tasks.albedo.render.patterns import Picture

SUFFIXES = (".png", ".jpg", ".jpeg")
_MOST_SIDE = 512  # pixels; a render shows less of it


@dataclass(frozen=True)
class Photograph:
    """A file of a folder."""

    name: str
    """Below the folder, with its ending."""
    path: Path

    def pixels(self) -> Picture:
        """(H, W, 3) uint8, its longer side 512 at most. Raises UserError where it cannot be read."""
        where = one_line(str(self.path))
        levels = colour_levels(decode(read_file(self.path), where)).permute(1, 2, 0).numpy()
        image = Image.fromarray(np.ascontiguousarray(levels))
        image.thumbnail((_MOST_SIDE, _MOST_SIDE))
        return np.asarray(image)


def find_photographs(folder: Path) -> list[Photograph]:
    """Those at any depth below `folder`, in the order of their paths; names that start with a dot are left out.

    Raises:
        UserError: there are fewer than two: with one, no object could be held out.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of photographs")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    kept = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if len(kept) < 2:
        raise UserError(
            f"{folder}: {len(kept)} photographs (PNG or JPEG); give at least two, for what is on a held-out object "
            "must be on no other"
        )
    return [Photograph(one_line(file.relative_to(folder).as_posix()), file) for file in kept]
