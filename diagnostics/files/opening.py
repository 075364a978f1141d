"""Opening regular files alone, and telling what lies inside a folder."""

import errno
import os
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}
QUIETLY = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY  # no waiting for a writer, no terminal of this process


class RefusedFileError(OSError):
    """A path that is no regular file, is too large, or leads out of its folder. `strerror` is the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(errno.EINVAL, reason, os.fspath(path))


def reason_of(error: OSError) -> str:
    """Why a file could not be read or written, in a few words; never empty."""
    return " ".join(str(error.strerror or error).split()) or type(error).__name__


def open_file(path: str | os.PathLike[str], *, inside: str | os.PathLike[str] | None = None) -> BufferedReader:
    """A regular file, opened for reading its bytes.

    Links are followed. What was opened is looked at again after it was opened, so a file that is exchanged in between
    is refused, too.

    Args:
        inside: a folder that the file must lie in once all links are followed; the folder itself may be a link.

    Raises:
        RefusedFileError: it is something else than a regular file, or lies elsewhere.
        OSError: there is none, or it may not be read.
    """
    require_regular(path, os.stat(path).st_mode)
    if inside is not None:
        require_inside(path, inside)
    descriptor = os.open(path, os.O_RDONLY | QUIETLY)
    try:
        opened = os.fstat(descriptor)
        require_regular(path, opened.st_mode)
        if inside is not None:
            require_inside(path, inside)
            if not os.path.samestat(opened, os.stat(path)):
                raise RefusedFileError(path, "exchanged while it was opened")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def require_file(path: str | os.PathLike[str], *, inside: str | os.PathLike[str] | None = None) -> os.stat_result:
    """Refuse what `open_file` refuses, for a library that opens files by their names. Returns what the file is.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path, inside=inside) as file:
        return os.fstat(file.fileno())


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a folder, or is it, once all links are followed; it need not be there yet."""
    try:
        place, whole = os.path.realpath(path), os.path.realpath(folder)
        return os.path.commonpath([place, whole]) == whole
    except (OSError, ValueError):  # a name too long for the file system, or with a zero byte
        return False


def require_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Raise RefusedFileError where a path leads out of a folder by a link."""
    if not is_inside(path, folder):
        raise RefusedFileError(path, f"a link that leads out of {os.fspath(folder)}; put the file itself there")


def paths_in(folder: Path, pattern: str, *, inside: Path | None = None) -> list[Path]:
    """What `folder.glob(pattern)` finds and does not lead out of `inside` (by default the folder), sorted by name."""
    root = folder if inside is None else inside
    if not is_inside(folder, root):
        return []
    return sorted(path for path in folder.glob(pattern) if is_inside(path, root))


def require_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise RefusedFileError where the mode of a file's status is none of a regular file."""
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something special")
        raise RefusedFileError(path, f"{kind}, not a file")
