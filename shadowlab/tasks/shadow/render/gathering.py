"""A folder of pictures that many processes fill: named once all is written, going on where it stopped.

Until then the pictures lie in the hidden folder `.NAME.partial` next to it, with a note of what was asked for.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diagnostics.files import open_file, read_bytes, replace, replace_text
from shadowlab.distributed import Processes
from shadowlab.errors import UserError

_REQUEST = "request.json"  # in the hidden folder: what is rendered there
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Gathering:
    """A data set under way."""

    out: Path
    """The name that it comes to have."""
    folder: Path
    """Where its files are now."""

    def note(self, request: Mapping[str, Any]) -> None:
        """What is rendered; pictures of an earlier, interrupted call stay where it was the same.

        Raises:
            UserError: it was another one.
        """
        text = json.dumps(request, indent=1)
        noted = self.folder / _REQUEST
        with _writing(self.out):
            if not noted.exists():
                replace_text(noted, text)
            elif read_bytes(noted, limit=2**30) != text.encode():
                raise UserError(
                    f"{self.out}: a rendering with other options was begun in {self.folder} and not finished; give its "
                    "options to go on, remove that folder, or choose another --out"
                )

    def has(self, names: Sequence[str]) -> bool:
        """Whether all these pictures, named as `objects/ID`, are there and whole."""
        return all(_is_whole(self.folder / f"{name}.png") for name in names)

    def save(self, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write PNG files. pictures: `objects/ID` -> (H, W) or (H, W, 3)."""
        with _writing(self.out):
            for name, pixels in pictures.items():
                encoded = BytesIO()
                Image.fromarray(pixels).save(encoded, format="PNG", optimize=True)
                replace(self.folder / f"{name}.png", encoded.getvalue())

    def finish(self, files: Mapping[str, str]) -> None:
        """Write the last files, name -> text, and give the folder the name that was asked for."""
        with _writing(self.out):
            for name, text in files.items():
                replace_text(self.folder / name, text)
            for stale in self.folder.glob("*/.*.tmp"):  # of a process that was killed
                stale.unlink()
            place = self.out.resolve()
            with suppress(FileNotFoundError):
                place.rmdir()  # fails where somebody has put something in meanwhile
            (self.folder / _REQUEST).unlink()
            self.folder.rename(place)


def check_empty(out: Path) -> None:
    """Raise UserError unless `out` can become a new folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; give a new one, or empty it first")


@contextmanager
def gathered(out: Path, folders: Sequence[str], processes: Processes) -> Iterator[Gathering]:
    """The hidden folder next to `out`, with `folders` in it; one command at a time writes into it. A collective.

    Raises:
        UserError: it cannot be written, or another command writes into it.
    """
    place = out.resolve()
    folder = place.parent / f".{place.name}.partial"
    lock = -1
    try:
        with processes.together():
            if processes.is_main:
                with _writing(out):
                    for name in folders:
                        (folder / name).mkdir(parents=True, exist_ok=True)
                    lock = os.open(folder, os.O_RDONLY)
                    _claim(lock, out)
        yield Gathering(out, folder)
    finally:
        if lock >= 0:
            os.close(lock)


def _is_whole(picture: Path) -> bool:
    """Files are renamed into place when they are written; a power cut may still have left one short."""
    try:
        with open_file(picture) as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _claim(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: another command is rendering it; wait for it, or choose another --out") from None


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); free some space, or choose another folder") from error
