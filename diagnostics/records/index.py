"""The index of a long run's records: their columns in a file beside them, so that they are parsed once.

It is a cache and never the truth: `metrics.index` next to `metrics.jsonl` may be removed at any time, is made anew
where the records are not those that it was made from, and whatever is wrong with it, it is as if there were none. It
holds numbers, names of layers and ids of samples; nothing of it is run. A folder that cannot be written has none.
"""

import hashlib
import json
import math
import os
import secrets
import struct
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import IO, Any, overload

from diagnostics.files import create, open_file, parse_json
from diagnostics.records.columns import OFFSETS, ArraysInMemory, Block, Gathered, Gatherer, KindColumns
from diagnostics.records.index_check import CODES, check
from diagnostics.records.lines import parse

SUFFIX = ".index"
_MAGIC = b"metrics-index-1\n"
_END = struct.Struct("<QI16s")  # length and checksum of the description, and _MAGIC
_MOST_DESCRIPTION = 2**26
_EDGE = 4096  # bytes at both ends of a block of records that say whether they are the same
_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RuntimeError,
    struct.error,
)


Extents = Mapping[str, tuple[str, int, int, int]]
"""Of arrays in a file: name -> type code, first byte, bytes, CRC-32."""


class ArrayFile:
    """Takes arrays to a file without a name, in the run's folder or where temporary files are; in memory where no disk
    takes them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def keep(self, arrays: "Mapping[str, array[Any]]") -> "StoredArrays":
        extents = {name: self._append(found) for name, found in arrays.items()}
        return StoredArrays(self.file, extents)

    @property
    def is_on_disk(self) -> bool:
        """Whether a process that was forked since it was opened has the same one."""
        return not isinstance(self.file(), BytesIO)

    def kept_by_child(self, extents: Extents, samples: Sequence[int]) -> "StoredArrays":
        """Arrays that a forked process put there; numbers of samples become those at their places in `samples`."""
        found, own = StoredArrays(self.file, extents), dict(extents)
        for name in extents:
            if name.endswith("/sample"):
                own[name] = self._append(array("i", [samples[number] for number in array("i", bytes(found.raw(name)))]))
        return StoredArrays(self.file, own)

    def _append(self, values: "array[Any]") -> tuple[str, int, int, int]:
        raw = memoryview(values).cast("B") if len(values) else memoryview(b"")
        file = self.file()
        begin = file.seek(0, os.SEEK_END)
        try:
            _write(file, raw)
        except OSError:  # a full disk
            memory = BytesIO()
            file.seek(0)
            while memory.tell() < begin:
                memory.write(file.read(min(2**24, begin - memory.tell())))
            memory.write(raw)
            self._file = memory
        return values.typecode, begin, len(raw), zlib.crc32(raw)

    def file(self) -> IO[bytes]:
        if self._file is None:
            for folder in (self._folder, None):
                with suppress(OSError):
                    self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
                    weakref.finalize(self, self._file.close)
                    return self._file
            self._file = BytesIO()
        return self._file


def _write(file: IO[bytes], raw: memoryview) -> None:
    while raw:
        raw = raw[file.write(raw) :]


class StoredArrays:
    """`Arrays` in a file.

    Args:
        file: gives it.
        extents: where they are.
    """

    def __init__(self, file: Callable[[], IO[bytes]], extents: Extents) -> None:
        self._file, self.extents = file, extents

    @property
    def codes(self) -> Mapping[str, str]:
        return {name: extent[0] for name, extent in self.extents.items()}

    def raw(self, name: str) -> bytearray:
        """Raises ValueError where they are not what was written."""
        _, begin, length, checksum = self.extents[name]
        content, file = bytearray(length), self._file()
        file.seek(begin)
        place, view = 0, memoryview(content)
        while place < length:
            taken = file.readinto(view[place:])  # type: ignore[attr-defined]
            if not taken:
                raise ValueError("cut short")
            place += taken
        if zlib.crc32(content) != checksum:
            raise ValueError("damaged")
        return content


def index_of(records: Path) -> Path:
    """Where the index of a file of records is."""
    return records.with_name(f"{records.name.removesuffix('.jsonl')}{SUFFIX}")


def load(path: Path, records: IO[bytes]) -> tuple[Gathered, list[Block], IO[bytes]] | None:
    """The index of a file of records, and its own file, which is to be closed; None where there is none that fits.

    Args:
        records: the file, open. It may have grown since.
    """
    try:
        place = index_of(path)
        file = open_file(place, inside=place.parent)
        try:
            content = _description(file)
            source, status = content["source"], os.fstat(records.fileno())
            known, blocks = _restored(content, file)
            same = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns] == source
            if source[0] != status.st_ino or blocks[-1].end > status.st_size:
                raise ValueError("of another file")
            if not same and any(
                _edges(records, one) != seen for one, seen in zip(blocks, content["edges"], strict=True)
            ):
                raise ValueError("the records are others")
            check(known, blocks)
            for block in blocks:
                _require_same(records, block, known)
        except BaseException:
            file.close()
            raise
        return known, blocks, file
    except _ERRORS:
        return None


def save(path: Path, records: IO[bytes], status: os.stat_result, known: Gathered, blocks: list[Block]) -> None:
    """Write the index in the place of an earlier one; nothing happens where the folder does not take it.

    Args:
        status: of the file of records when it began to be read.
    """
    place = index_of(path)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        for left in place.parent.glob(f".{place.name}.????????.tmp"):  # of a process that was killed
            if left.lstat().st_mtime < status.st_mtime - 3600:
                left.unlink()
        try:
            with create(temporary) as file:
                file.write(_MAGIC)
                written = [_block(file, block) for block in blocks]
                samples = json.dumps(list(known.samples)).encode("ascii")
                content = {
                    "samples": [len(known.samples), file.tell(), len(samples), zlib.crc32(samples)],
                    "source": [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns],
                    "known": described(known),
                    "blocks": written,
                    "edges": [_edges(records, block) for block in blocks],
                }
                file.write(samples)
                text = json.dumps(content).encode("ascii")
                file.write(text + _END.pack(len(text), zlib.crc32(text), _MAGIC))
            os.replace(temporary, place)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError:
        return  # without an index all is as it was, but for the time


def _block(file: IO[bytes], block: Block) -> dict[str, Any]:
    extents = {}
    for name, code in block.arrays.codes.items():
        raw = memoryview(block.arrays.raw(name))
        raw = raw.cast("B") if len(raw) else memoryview(b"")
        extents[name] = [code, file.tell(), len(raw), zlib.crc32(raw)]
        file.write(raw)
    return {
        "first": block.first,
        "records": block.records,
        "begin": block.begin,
        "end": block.end,
        "kinds": [asdict(kind) for kind in block.kinds],
        "arrays": extents,
    }


def _description(file: IO[bytes]) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _END.size))
    length, checksum, magic = _END.unpack(file.read(_END.size))
    if magic != _MAGIC or not 0 < length <= min(_MOST_DESCRIPTION, size - _END.size):
        raise ValueError("no index")
    file.seek(size - _END.size - length)
    text = file.read(length)
    if zlib.crc32(text) != checksum:
        raise ValueError("damaged")
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("no index")
    return content


def _restored(content: Mapping[str, Any], file: IO[bytes]) -> tuple[Gathered, list[Block]]:
    """As it says; `check` says whether that can be."""
    count, begin, length, checksum = map(int, content["samples"])
    _require_extent(begin, length, os.fstat(file.fileno()).st_size)
    stored = StoredArrays(lambda: file, {"": ("B", begin, length, checksum)})
    known = Gathered(**content["known"], samples=_Samples(count, stored))
    known.layouts = [tuple(names) for names in known.layouts]
    size, blocks = os.fstat(file.fileno()).st_size, []
    for one in content["blocks"]:
        kinds = kinds_of(one["kinds"])
        extents = {}
        for name, (code, begin, length, checksum) in one["arrays"].items():
            _require_extent(begin, length, size)
            if length % CODES[code]:
                raise ValueError("half a number")
            extents[str(name)] = (str(code), int(begin), int(length), int(checksum))
        arrays = StoredArrays(lambda: file, extents)
        blocks.append(Block(one["first"], one["records"], kinds, arrays, one["begin"], one["end"]))
    return known, blocks


def described(known: Gathered) -> dict[str, Any]:
    """What is written of it, but for the samples, of which there may be many."""
    return {key: value for key, value in vars(known).items() if key != "samples" and not key.startswith("_")}


def kinds_of(described: Sequence[Mapping[str, Any]]) -> list[KindColumns]:
    """As `asdict` wrote them to JSON."""
    return [
        KindColumns(**{**kind, "inner": [(str(outer), str(inner)) for outer, inner in kind["inner"]]})
        for kind in described
    ]


def _require_extent(begin: int, length: int, size: int) -> None:
    if not (0 <= begin and 0 <= length and begin + length <= size):
        raise ValueError("an array beyond the file")


class _Samples(Sequence[Any]):
    """Ids of samples, read when one is asked for: as a rule none is."""

    def __init__(self, count: int, stored: StoredArrays) -> None:
        self._count, self._stored = count, stored
        self._names: list[Any] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if self._names is None:
            found = json.loads(bytes(self._stored.raw("")))
            is_so = isinstance(found, list) and len(found) == self._count
            self._names = found if is_so and all(isinstance(one, str | int | float) for one in found) else None
        if self._names is None:
            raise ValueError("metrics.index does not fit its records; remove it")
        return self._names[place]


def _require_same(records: IO[bytes], block: Block, known: Gathered) -> None:
    """Raises ValueError where one of a block's records, whichever it is, says something else than the columns."""
    begins = [*block.read(OFFSETS).tolist(), block.end]
    number = secrets.randbelow(block.records)
    records.seek(begins[number])
    record = parse(records.read(begins[number + 1] - begins[number]))
    again = Gatherer(Gathered(training=list(known.training)), ArraysInMemory)
    again.add(record)
    again.close()
    [other] = again.blocks
    for own in other.kinds:
        place, columns = block.columns(own.kind)
        rows = (block.read(f"{place}/place") == number).nonzero().flatten().tolist() if columns is not None else []
        if not rows or not bool(block.read(f"{place}/step")[rows[0]] == other.read("0/step")[0]):
            raise ValueError("another step or kind")
        for key, value in ((key, float(record[key])) for key in own.numbers):
            array = f"{place}/number/{columns.numbers.index(key)}" if columns is not None else ""
            at = rows[0]
            if f"{array}/row" in block.arrays.codes:
                [at] = (block.read(f"{array}/row") == rows[0]).nonzero().flatten().tolist()
            found = float(block.read(array)[at])
            if found != value and not (math.isnan(found) and math.isnan(value)):
                raise ValueError("another number")


def _edges(records: IO[bytes], block: Block) -> str:
    """Digest of both ends of the bytes of a block's records."""
    digest = hashlib.sha256()
    for place in (block.begin, max(block.begin, block.end - _EDGE)):
        records.seek(place)
        digest.update(records.read(min(_EDGE, block.end - place)))
    return digest.hexdigest()
