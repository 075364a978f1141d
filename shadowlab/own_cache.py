"""This user's cache folder: made for them alone, and trusted only while nobody else can write into it.

`$XDG_CACHE_HOME/shadowlab`, by default `~/.cache/shadowlab`. All that lies there can be made again.
"""

import os
import stat
from pathlib import Path

from diagnostics.files import RefusedFileError


def cache_folder(name: str) -> Path:
    """Where the files of one kind lie; it need not be there.

    Raises:
        OSError: this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # others are to be ignored, as its specification says
        return Path(given) / "shadowlab" / name
    try:
        return Path.home() / ".cache" / "shadowlab" / name
    except RuntimeError as error:
        raise OSError(str(error)) from error


def make_cache_folder(name: str) -> Path:
    """The folder, which nobody else may enter.

    Raises:
        OSError: it cannot be made, or is not this user's alone.
    """
    folder = cache_folder(name)
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for one in (folder.parent, folder):
        one.mkdir(mode=0o700, exist_ok=True)
        require_own(one)
    return folder


def require_own(path: Path) -> None:
    """Raise RefusedFileError unless a folder or file belongs to this user and only they may write to it.

    A link is refused, too. Raises another OSError where nothing is there.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise RefusedFileError(path, "a link")
    if status.st_uid != os.geteuid():
        raise RefusedFileError(path, "belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedFileError(path, "others may write to it")
