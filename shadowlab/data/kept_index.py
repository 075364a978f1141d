"""The index of a large data set, kept in the user's cache folder: its next opening takes a second.

    ~/.cache/shadowlab/indexes/KEY.safetensors    KEY: digest of the layout and the data set's place

The file is columns and JSON, with a checksum; nothing in it becomes code. It is used while what it was made from looks
as it did then: size, modification time and time of change of the folders, the metadata and every archive, and of
4,096 picture files, evenly spread. So files that come, go or are renamed are noticed, edited metadata, other archives,
and pictures that are written anew in place, if they are many. A few that are overwritten in place may not be noticed:
they are read as they are now, but the run's fingerprint of its data has their old sizes.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diagnostics.files import RefusedFileError, read_bytes, reason_of, replace
from shadowlab.data.column_files import joined_columns, split_columns
from shadowlab.data.entries import Entries
from shadowlab.data.index import Index
from shadowlab.data.sources import FileSource
from shadowlab.own_cache import cache_folder, make_cache_folder, require_own

_FOLDER = "indexes"
_FORMAT = 1  # one more whenever what is in the file comes to mean something else
_WORTH = 4096  # pictures; fewer are indexed in less than a second each time
_NUM_PROBES = 4096
_RACY_SECONDS = 2.0  # a file changed a moment ago may change again without another time
_MOST_FILES = 32  # of data sets; what was not used for longest goes first
_MOST_BYTES = 2**32

Probe = list[Any]
"""Path below the root, size in bytes, modification time and time of change in nanoseconds."""


def indexed_once(
    root: Path, layout: str, watched: Callable[[], Sequence[Path]], build: Callable[[], Index], *, renew: bool = False
) -> Index:
    """The index of the data set at `root`: the kept one where it still holds, else a new one, which is kept.

    A cache that cannot be read or written has no effect. A damaged one, or one that is not this user's alone, is not
    used; `Index.remarks` says so.

    Args:
        layout: what reads the files, with a number that grows whenever it comes to another index of the same files.
        watched: folders and files below the root whose change makes another index.
        build: reads all names and metadata.
        renew: build it in any case.
    """
    remarks: list[str] = []
    if not renew:
        index = _read(root, layout, watched, remarks)
        if index is not None:
            return index
    began = time.time()
    index = build()
    index.remarks += remarks
    if not index.problems and index.entries.num_pictures >= _WORTH:
        with suppress(OSError):
            _write(index, root, layout, watched(), began)
    return index


def _place(root: Path, layout: str) -> Path:
    words = f"{layout}\n{os.path.realpath(root)}"
    return cache_folder(_FOLDER) / f"{hashlib.sha256(words.encode('utf-8', 'surrogateescape')).hexdigest()}.safetensors"


def _read(root: Path, layout: str, watched: Callable[[], Sequence[Path]], remarks: list[str]) -> Index | None:
    """None where there is none that can be used."""
    try:
        place = _place(root, layout)
        if not place.exists():
            return None
        for path in (place.parent.parent, place.parent, place):
            require_own(path)
        arrays, about = split_columns(read_bytes(place, limit=_MOST_BYTES))
        if about["format"] != _FORMAT or about["layout"] != layout:
            return None
        names = [name for name, *_ in about["probes"]]
        if not {_below(root, path) for path in watched()} <= set(names):
            return None
        if any(_probe(root, name) != noted for name, noted in zip(names, about["probes"], strict=True)):
            return None
        entries = Entries(root, about["roles"], arrays)
        with suppress(OSError):
            os.utime(place)  # it was used
        return Index(entries, notices=[str(one) for one in about["notices"]], digest=str(about["fingerprint"]))
    except RefusedFileError as error:
        remarks.append(f"{error.filename}: {reason_of(error)}; the index kept there is not used")
    except (ValueError, LookupError, TypeError):
        remarks.append(f"{place}: damaged; the index was made again from the data set")
    except OSError:
        pass  # no home, no permission, or what was looked at is gone
    return None


def _write(index: Index, root: Path, layout: str, watched: Sequence[Path], began: float) -> None:
    """Raises OSError where that is not possible."""
    names = [*(_below(root, path) for path in watched), *_spread(index.entries)]
    probes = [_probe(root, name) for name in names]
    if max(time for _, _, *times in probes for time in times) / 1e9 > began - _RACY_SECONDS:
        return
    about = {
        "format": _FORMAT,
        "layout": layout,
        "roles": index.entries.roles,
        "notices": index.notices,
        "fingerprint": index.fingerprint(),
        "probes": probes,
    }
    make_cache_folder(_FOLDER)
    place = _place(root, layout)
    replace(place, joined_columns(index.entries.arrays(), about))
    os.chmod(place, 0o600)  # whatever the umask: what others may write to is not read
    kept = sorted(place.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-_MOST_FILES]:
        path.unlink(missing_ok=True)


def _spread(entries: Entries) -> Iterator[str]:
    """Names of picture files, evenly spread over each role; none of those that lie in archives."""
    count = len(entries)
    step = -(-count * len(entries.roles) // _NUM_PROBES)
    for place in range(0, count * len(entries.roles), max(1, step)):
        source = entries[place % count].sources.get(entries.roles[place // count])
        if isinstance(source, FileSource):
            yield source.name


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _probe(root: Path, name: str) -> Probe:
    status = os.stat(root / name)
    return [name, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
