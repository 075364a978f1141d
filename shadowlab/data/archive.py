"""Members of a .tar file by offset, so that they can be read in place; nothing is ever extracted to disk."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from diagnostics.files import open_file
from shadowlab.data.sources import SliceSource

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 2**20  # bytes of a long name or of what pax says of a member; tarfile reads as many as it is told
_PADDING = 64  # MiB of zeros that may follow the last member


class _Headers:
    """A file from which headers alone are read: nothing that is larger than one.

    Raises:
        ValueError: more is asked for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.name = file.seek, file.tell, file.name
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._read(size)


def list_members(path: Path) -> Iterator[tuple[str, SliceSource | None, str]]:
    """Yield (name, source, fault) for each member: a source, or else the reason why there is none.

    Faults: unsafe names, links, devices, sparse files; a tar that is damaged, truncated, compressed or has data
    after its end (named by the last whole member, or "" where there is none). Plain directories and names that
    start with a dot are skipped.
    """
    name, end = "", 0
    try:
        with open_file(path) as file, tarfile.open(fileobj=cast(Any, _Headers(file)), mode="r:") as archive:
            while (member := archive.next()) is not None:
                # It would keep all of them, to be asked for by name.
                archive.members.clear()  # type: ignore[attr-defined]
                if member.offset < end or member.size < 0:  # a crafted size would send the reader back
                    yield name, None, "damaged tar behind this member; fetch it again"
                    return
                name = member.name.removeprefix("./")
                end = archive.offset  # of the next header
                fault = _member_fault(member)
                if fault:
                    yield name, None, fault
                elif member.isreg() and not Path(name).name.startswith("."):
                    yield name, SliceSource(path, name, member.size, member.offset_data), ""
        fault = _end_fault(path, end)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        fault = f"truncated or damaged tar, or not a plain one ({error}); fetch it again, decompressed"
    if fault:
        yield name, None, fault


def _member_fault(member: tarfile.TarInfo) -> str:
    name = member.name
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
        return "unsafe member name; a member must not leave the archive; make the tar again"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}; links are not read; store the file itself"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "a device, pipe or sparse file; store a plain file"
    return ""


def _end_fault(path: Path, end: int) -> str:
    """tarfile stops silently at a damaged header and at the first zero block: look at what it did not."""
    with open_file(path) as file:
        file.seek(end)
        marker = file.read(_BLOCK)
        if len(marker) < _BLOCK:
            return "truncated tar: the end-of-archive mark is missing; fetch it again"
        if marker.strip(b"\0"):
            return "damaged tar: the next header is unreadable; fetch it again"
        for _ in range(_PADDING):
            chunk = file.read(1 << 20)
            if chunk.strip(b"\0"):
                return "data behind the end-of-archive mark would never be read; join tars with `tar --concatenate`"
            if not chunk:
                return ""
    return f"more than {_PADDING} MiB without a member behind the end-of-archive mark; make the tar again"
