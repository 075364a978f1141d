"""What a reader finds before it decodes a picture: an entry and where its pictures lie, or what is wrong."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diagnostics.files import open_file, reason_of, require_file
from shadowlab.errors import UserError

Role = str
"""What a picture is to its task: `object`, `mask`."""

MAX_FILE_BYTES = 1 << 30  # the largest picture that is decoded has 0.7 GiB of pixels, uncompressed


def one_line(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass(frozen=True)
class Problem:
    """One fault of a data set. `str()` is one line."""

    sample: str
    """The sample id; where no sample can be blamed, the file or folder."""
    message: str
    """The file or key, what is wrong and the fix."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample", one_line(self.sample))
        object.__setattr__(self, "message", one_line(self.message))

    def __str__(self) -> str:
        return f"{self.sample}: {self.message}"


class Source(Protocol):
    """Encoded bytes that can be read at any time, from any process."""

    @property
    def path(self) -> Path:
        """The file they lie in."""

    @property
    def name(self) -> str:
        """Name inside the data set, as messages show it."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self) -> bytes:
        """All bytes. Raises UserError naming the file."""


@dataclass(frozen=True)
class FileSource:
    """A file of its own."""

    path: Path
    name: str
    size: int

    def read(self) -> bytes:
        try:
            with open_file(self.path) as file:
                _check_bytes(self.name, os.fstat(file.fileno()).st_size)
                return file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({reason_of(error)}); check the file") from error


def read_file(path: Path) -> bytes:
    """All bytes of a file that a user names. Raises UserError that names it; pipes and devices are refused."""
    where = one_line(str(path))
    try:
        return FileSource(path, where, require_file(path).st_size).read()
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except OSError as error:  # a folder, a name too long for the file system, a folder that may not be entered
        raise UserError(f"{where}: cannot be read ({reason_of(error)}); check the path") from error


@dataclass(frozen=True)
class SliceSource:
    """A range of bytes of a larger file. Opens it on every read: no handle is shared by processes."""

    path: Path
    name: str
    size: int
    offset: int

    def read(self) -> bytes:
        _check_bytes(self.name, self.size)
        try:
            with open_file(self.path) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise UserError(f"{self.name}: {self.path.name} cannot be read ({reason_of(error)})") from error
        if len(data) != self.size:
            raise UserError(f"{self.name}: {self.path.name} ends inside this member; fetch it again")
        return data


def _check_bytes(name: str, size: int) -> None:
    """Raise UserError before memory is asked for what cannot be a picture or its metadata."""
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{name}: {size / 2**30:,.1f} GiB, at most {MAX_FILE_BYTES / 2**30:g} are read; replace it by the picture"
        )


@dataclass(frozen=True)
class Entry:
    """A sample as its metadata describe it. In an index without problems all that its task asks for is there."""

    id: str
    object_id: str
    """Samples of one object share it; a split never separates them."""
    values: tuple[float, ...] | None
    """The numbers of its metadata, in the task's order; None where they are faulty."""
    track: str | None
    sources: dict[Role, Source]
