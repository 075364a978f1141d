"""`shadowlab data pack`: write a data set into tars, or go on where an earlier call stopped."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from diagnostics.files import create, replace_text, sha256_of
from shadowlab.console import Reporter
from shadowlab.data import Entry, Index, Role, one_line
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import UserError
from shadowlab.packs.index import (
    FORMAT,
    PACK,
    Row,
    Shard,
    lines_path,
    read_header,
    read_shard,
    shard_name,
    tar_path,
)

SHARD_MIB = 1024
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class PackReport:
    """What a call did."""

    num_samples: int
    num_shards: int
    num_packed: int
    """Shards written by this call."""
    num_kept: int
    """Those found whole."""
    mib: float
    """Size of all tars."""


@dataclass(frozen=True)
class _Part:
    """The samples that one shard takes."""

    name: str
    first: int
    end: int


def pack_dataset(
    index: Index,
    out: Path,
    processes: Processes,
    reporter: Reporter,
    *,
    value_names: Sequence[str],
    shard_mib: float = SHARD_MIB,
) -> PackReport:
    """Pack the samples of `index`, in the order of their ids, into tars of about `shard_mib` MiB. A collective.

    The same data give the same bytes, whatever the number of processes. A shard whose bytes are what was written, of
    pictures that have not changed since, is kept. `pack.json` is written last: without it there is no pack.

    Args:
        index: the same on every process.
        out: a folder that is new, empty, or holds this pack or a part of it.
        processes: share the shards; the first has the report.
        value_names: of the numbers of an entry, as KEY.json has them.

    Raises:
        UserError: the data have problems or change meanwhile, `out` holds something else or cannot be written.
    """
    with processes.together():
        if index.problems:
            others = len(index.problems) - 1
            more = f" (and at least {others} more)" if others else ""
            raise UserError(f"{index.problems[0]}{more}; for all run: shadowlab data check")
    packing = _Packing(index, out, tuple(value_names), round(shard_mib * 2**20))
    with processes.together(), packing.writing():
        parts = packing.parts()
        if processes.is_main:
            packing.begin(parts)
    results = share_out(
        processes, parts, packing.work, reporter, noun="sample", size=lambda part: part.end - part.first
    )
    with processes.together(), packing.writing():
        if processes.is_main:
            packing.finish([shard for shard, _ in results])
    kept = sum(was_kept for _, was_kept in results)
    return PackReport(
        num_samples=len(index.entries),
        num_shards=len(parts),
        num_packed=len(parts) - kept,
        num_kept=kept,
        mib=sum(shard.bytes for shard, _ in results) / 2**20,
    )


@dataclass(frozen=True)
class _Packing:
    """A pack that is being written."""

    index: Index
    out: Path
    value_names: tuple[str, ...]
    most_bytes: int

    def parts(self) -> list[_Part]:
        """Which samples go into which shard: as many as fit, at least one."""
        parts: list[_Part] = []
        first = used = 0
        for i, entry in enumerate(self.index.entries):
            sizes = [len(self._metadata(entry)), *(source.size for source in entry.sources.values())]
            needed = sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)
            if i > first and used + needed > self.most_bytes:
                parts.append(_Part(shard_name(len(parts)), first, i))
                first, used = i, 0
            used += needed
        return [*parts, _Part(shard_name(len(parts)), first, len(self.index.entries))]

    def begin(self, parts: Sequence[_Part]) -> None:
        """Raises UserError where something else than a part of this pack lies in the folder."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: is a file; give a folder that is new or empty")
        self.out.mkdir(parents=True, exist_ok=True)
        ours = {PACK} | {path(self.out, part.name).name for part in parts for path in (tar_path, lines_path)}
        for path in sorted(self.out.iterdir()):
            if path.name.startswith((".shard-", f".{PACK}.")) and path.name.endswith(".tmp"):
                path.unlink()  # of a process that was killed
            elif path.name not in ours:
                raise UserError(
                    f"{self.out}: {one_line(path.name)} is no part of this pack; choose another --out, or remove it"
                )

    def work(self, share: Sequence[_Part]) -> Iterator[tuple[Shard, bool]]:
        """Each part's shard, and whether it was there."""
        for part in share:
            kept = self._kept(part)
            if kept is not None:
                yield kept, True
            else:
                with self.writing():
                    yield self._write(part), False

    def finish(self, shards: Sequence[Shard]) -> None:
        """Write pack.json, from the same shards to the same bytes."""
        listed = []
        for shard in shards:
            digest = sha256_of(lines_path(self.out, shard.name))
            listed.append({**asdict(shard), "lines_sha256": digest})
        content = {"format": FORMAT, "samples": len(self.index.entries), "notices": self.index.notices}
        replace_text(self.out / PACK, json.dumps({**content, "shards": listed}, indent=1) + "\n", synced=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.out}: cannot be written ({error.strerror or error}); free some space or choose another --out; "
                "the shards that are done are kept"
            ) from error

    def _kept(self, part: _Part) -> Shard | None:
        """The shard, if it is there, whole, and of these pictures; as make, by the times of the files."""
        tar = tar_path(self.out, part.name)
        entries = self.index.entries[part.first : part.end]
        try:
            shard = read_header(self.out, part.name)
            rows = list(read_shard(self.out, shard))
            if [_identity(row.entry) for row in rows] != [_identity(entry) for entry in entries]:
                return None
            written = tar.stat().st_mtime_ns
            if any(source.path.stat().st_mtime_ns > written for one in entries for source in one.sources.values()):
                return None
            return shard if sha256_of(tar) == shard.sha256 else None
        except (OSError, ValueError):
            return None  # not there, or damaged: it is written again

    def _write(self, part: _Part) -> Shard:
        """Write the tar aside, rename it, then note what is in it."""
        tar = tar_path(self.out, part.name)
        temporary = tar.with_name(f".{tar.name}.{os.getpid()}.tmp")
        try:
            with create(temporary) as file:
                hashed = _Hashed(file)
                rows = self._fill(hashed, self.index.entries[part.first : part.end])
                file.flush()
                os.fsync(file.fileno())
            lines_path(self.out, part.name).unlink(missing_ok=True)  # those of an older tar
            temporary.replace(tar)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        shard = Shard(part.name, len(rows), hashed.size, hashed.digest.hexdigest())
        header = json.dumps(asdict(shard), separators=(",", ":")) + "\n"
        replace_text(lines_path(self.out, part.name), header + "".join(row.line() for row in rows), synced=True)
        return shard

    def _fill(self, file: "_Hashed", entries: Sequence[Entry]) -> list[Row]:
        rows = []
        stream: Any = file  # tarfile asks for write and tell alone
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in entries:
                key = _key(entry.id)
                _add(tar, f"{key}.json", self._metadata(entry))
                places: dict[Role, tuple[str, int, int]] = {}
                for role, source in sorted(entry.sources.items()):
                    data = source.read()
                    if len(data) != source.size:
                        raise UserError(
                            f"{one_line(entry.id)}: {source.name} changed while it was packed; run the command again "
                            "when nobody writes to it"
                        )
                    offset = _add(tar, f"{key}.{role}{Path(source.name).suffix.lower()}", data)
                    places[role] = (source.name, offset, len(data))
                rows.append(Row(entry, places))
        return rows

    def _metadata(self, entry: Entry) -> bytes:
        """KEY.json: what a folder's metadata.json says of the sample, and its id."""
        numbers: Mapping[str, float] = dict(zip(self.value_names, entry.values or (), strict=True))
        track = {} if entry.track is None else {"track": entry.track}
        content = {"id": entry.id, **numbers, "object": entry.object_id, **track}
        return (json.dumps(content, indent=1) + "\n").encode()


class _Hashed:
    """A file that is written from its beginning to its end, and its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member that says nothing of when and by whom it was made; returns the offset of its bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, BytesIO(data))
    return tar.offset - -(-len(data) // _BLOCK) * _BLOCK


def _key(sample: str) -> str:
    """A name without a dot, so that readers of WebDataset cut it off where it ends."""
    return sample.replace("%", "%25").replace(".", "%2E")


def _identity(entry: Entry) -> list[Any]:
    """What two entries of the same sample agree in, wherever their pictures lie."""
    pictures = {role: (source.name, source.size) for role, source in sorted(entry.sources.items())}
    return [entry.id, entry.object_id, entry.track, entry.values, pictures]
