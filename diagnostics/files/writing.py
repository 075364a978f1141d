"""Writing that follows no link: what stands at a name is replaced, or refused, and never written through."""

import fcntl
import os
import shutil
import stat
from contextlib import suppress
from io import BufferedRandom, BufferedWriter
from pathlib import Path

from diagnostics.files.opening import QUIETLY, RefusedFileError, require_regular

_PathLike = str | os.PathLike[str]


def replace(path: _PathLike, content: bytes, *, synced: bool = False) -> None:
    """Put a file of this content in the place of whatever file or link has its name; never half of it.

    Args:
        synced: whether it is on the disk when this returns.

    Raises:
        OSError: the disk refuses, or a folder has the name; nothing of it stays.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
        with create(temporary) as file:
            file.write(content)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def replace_text(path: _PathLike, text: str, *, synced: bool = False) -> None:
    """`replace`, by text in UTF-8."""
    replace(path, text.encode("utf-8"), synced=synced)


def create(path: _PathLike) -> BufferedWriter:
    """A new file, opened for writing its bytes; a file, link or pipe that had the name is removed first.

    Raises:
        OSError: the disk refuses, or a folder has the name.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | QUIETLY
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def append_to(path: _PathLike) -> BufferedWriter:
    """A regular file, made where there is none, opened for writing at its end. Links are refused, whereto they lead.

    Raises:
        RefusedFileError: it is something else than a regular file.
        OSError: the disk refuses.
    """
    return os.fdopen(_open_own(path, os.O_WRONLY | os.O_APPEND), "ab")


def lock_file(path: _PathLike) -> BufferedRandom:
    """A regular file, made where there is none, that is there to be locked; its content is left alone.

    Raises:
        OSError: as `append_to`.
    """
    return os.fdopen(_open_own(path, os.O_RDWR), "r+b")


def hold(path: _PathLike) -> int | None:
    """A regular file, made where there is none, locked against other processes until the descriptor is closed.

    Who holds it may remove it first: whoever has opened it by then looks again.

    Returns:
        The descriptor; None where another process holds the file.

    Raises:
        OSError: as `append_to`.
    """
    while True:
        with lock_file(path) as file:
            held = os.dup(file.fileno())
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), os.stat(path)):
                return held
        os.close(held)


def remove_tree(folder: _PathLike) -> None:
    """Remove a folder with all that is in it; of a link, a file or a pipe only itself. Nothing there is no error.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(folder)
    else:
        os.unlink(folder)


def _open_own(path: _PathLike, flags: int) -> int:
    with suppress(FileNotFoundError):
        require_regular(path, os.lstat(path).st_mode)  # a pipe or a device is not even opened
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | QUIETLY, 0o666)
    try:
        require_regular(path, os.fstat(descriptor).st_mode)
    except RefusedFileError:
        os.close(descriptor)
        raise
    return descriptor
