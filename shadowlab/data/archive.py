"""Members of a .tar file by offset, so that they can be read in place; nothing is ever extracted to disk."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from shadowlab.data.index import SliceSource

_BLOCK = tarfile.BLOCKSIZE


def list_members(path: Path) -> Iterator[tuple[str, SliceSource | None, str]]:
    """Yield (name, source, fault) for each member: a source, or else the reason why there is none.

    Faults: unsafe names, links, devices, sparse files; a tar that is damaged, truncated, compressed or has data
    after its end (named by the last whole member, or "" where there is none). Plain directories and names that
    start with a dot are skipped.
    """
    name, end = "", 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
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
    with path.open("rb") as file:
        file.seek(end)
        marker = file.read(_BLOCK)
        if len(marker) < _BLOCK:
            return "truncated tar: the end-of-archive mark is missing; fetch it again"
        if marker.strip(b"\0"):
            return "damaged tar: the next header is unreadable; fetch it again"
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                return "data behind the end-of-archive mark would never be read; join tars with `tar --concatenate`"
    return ""
