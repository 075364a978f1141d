"""What lies in a pack, and how it is found again.

    DIR/pack.json           number of samples, notices, and of each shard its size and SHA-256; written last
    DIR/shard-000000.tar    KEY.json KEY.mask.png KEY.object.png ..., the members of a sample one behind the other
    DIR/shard-000000.jsonl  a header, then a line a sample: what its metadata say, and where each picture's bytes lie

KEY is the sample's id with `%25` in place of % and `%2E` in place of a dot, at which WebDataset would cut it. The tars
alone are what the `webdataset` library reads and `tar -xf` unpacks; a picture keeps the name that it had in the data
set it came from, so entries and fingerprint are those of that data set.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diagnostics.files import open_file, parse_json, read_bytes, reason_of, require_file
from shadowlab.data import EntriesWriter, Entry, Index, Problem, Role, SliceSource, Source, indexed_once, one_line

PACK, FORMAT = "pack.json", 1
LAYOUT = "pack 1"  # one more whenever the same files come to give another index
_SHARD = re.compile(r"shard-[0-9]{6,9}")
_MOST_BYTES = 2**31  # of an index that is read
_AGAIN = "pack the data again, or fetch the pack again"


def shard_name(number: int) -> str:
    return f"shard-{number:06d}"


def tar_path(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.tar"


def lines_path(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.jsonl"


@dataclass(frozen=True)
class Shard:
    """One tar of a pack."""

    name: str
    samples: int
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar."""

    @classmethod
    def of(cls, content: Any) -> Self:
        """Raises ValueError where it is none."""
        if not isinstance(content, dict) or set(content) != {"name", "samples", "bytes", "sha256"}:
            raise ValueError("a shard is not described by name, samples, bytes and sha256")
        name, digest = content["name"], content["sha256"]
        if not (isinstance(name, str) and _SHARD.fullmatch(name)):
            raise ValueError(f"{name!r:.40} is no shard's name")
        if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise ValueError(f"{name}: its SHA-256 is none")
        return cls(name, _count(content["samples"]), _count(content["bytes"]), digest)


@dataclass(frozen=True)
class Row:
    """A sample of a shard."""

    entry: Entry
    """As the data set has it that was packed."""
    places: Mapping[Role, tuple[str, int, int]]
    """Of each picture: its name in the data set, offset in the tar and size, bytes."""

    def line(self) -> str:
        one = self.entry
        content = {"id": one.id, "object": one.object_id, "track": one.track, "values": one.values}
        return json.dumps({**content, "pictures": self.places}, separators=(",", ":")) + "\n"

    @classmethod
    def of(cls, content: Any, tar: Path, size: int) -> Self:
        """Of a line. Raises ValueError where it is none, or leads out of the tar."""
        if not isinstance(content, dict) or set(content) != {"id", "object", "track", "values", "pictures"}:
            raise ValueError("a line is not id, object, track, values and pictures")
        values, track = content["values"], content["track"]
        if values is not None and not (isinstance(values, list) and all(map(_is_number, values))):
            raise ValueError("values are not numbers")
        if not isinstance(content["pictures"], dict):
            raise ValueError("pictures is no object")
        places: dict[Role, tuple[str, int, int]] = {}
        for role, place in content["pictures"].items():
            if not (isinstance(place, list) and len(place) == 3):
                raise ValueError(f"{role!r:.40}: not a name, an offset and a size")
            places[role] = (_text(place[0]), _count(place[1]), _count(place[2]))
            if places[role][1] + places[role][2] > size:
                raise ValueError(f"{role!r:.40}: ends behind the end of {tar.name}")
        sources: dict[Role, Source] = {
            role: SliceSource(tar, name, length, offset) for role, (name, offset, length) in places.items()
        }
        numbers = None if values is None else tuple(map(float, values))
        entry = Entry(
            id=_text(content["id"]),
            object_id=_text(content["object"]),
            values=numbers,
            track=None if track is None else _text(track),
            sources=sources,
        )
        return cls(entry, places)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"{value!r:.40} is no count of bytes or samples")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can be
        return False


def is_pack(root: Path) -> bool:
    """Whether a pack, finished or not, lies there."""
    return root.is_dir() and ((root / PACK).exists() or lines_path(root, shard_name(0)).exists())


def pack_index(root: Path, roles: Sequence[Role], fault: Callable[[Entry], str], *, renew: bool = False) -> Index:
    """As `index_pack`; of a large pack the kept index, where it still holds. renew: read the pack in any case."""

    def watched() -> list[Path]:
        return [root / PACK, *sorted(root.glob("shard-*.tar"))]

    return indexed_once(root, LAYOUT, watched, lambda: index_pack(root, roles, fault), renew=renew)


def index_pack(root: Path, roles: Sequence[Role], fault: Callable[[Entry], str]) -> Index:
    """All entries of a pack, with all that is wrong with it. No picture is opened.

    Args:
        roles: that a sample may have, in the order in which its pictures are read.
        fault: what a task finds wrong with an entry; empty where it is a sample of it.
    """
    index, entries = Index(), EntriesWriter(root, roles)
    try:
        shards, index.notices = _read_pack(root)
    except FileNotFoundError:
        index.problems.append(
            Problem(PACK, f"missing: the packing did not come to its end; go on with: shadowlab data pack ... {root}")
        )
        return index
    except (OSError, ValueError) as error:
        index.problems.append(Problem(PACK, f"{_reason(error)}; {_AGAIN}"))
        return index
    last = ""
    for shard, digest in shards:
        try:
            for row in read_shard(root, shard, digest):
                if row.entry.id <= last:
                    raise ValueError(f"{one_line(row.entry.id)} is not behind {one_line(last)}: ids are sorted")
                entries.add(row.entry)
                last = row.entry.id
                if wrong := fault(row.entry):
                    index.problems.append(Problem(last, f"{wrong}; {_AGAIN}"))
        except (OSError, ValueError) as error:
            index.problems.append(Problem(shard.name, f"{_reason(error)}; {_AGAIN}"))
    index.entries = entries.finish()
    if not index.entries and not index.problems:
        index.problems.append(Problem(PACK, f"empty data set: no sample is listed; {_AGAIN}"))
    return index


def _read_pack(root: Path) -> tuple[list[tuple[Shard, str]], list[str]]:
    """Its shards, each with the SHA-256 of its lines, and its notices."""
    content = parse_json(read_bytes(root / PACK, limit=_MOST_BYTES, inside=root))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"not a pack of format {FORMAT}")
    notices, shards = content.get("notices"), content.get("shards")
    if not isinstance(notices, list) or not isinstance(shards, list):
        raise ValueError("damaged: it has no list of shards and notices")
    read = []
    for shard in shards:
        lines = shard.pop("lines_sha256", None) if isinstance(shard, dict) else None
        read.append((Shard.of(shard), _text(lines)))
    return read, [one_line(_text(notice)) for notice in notices]


def read_shard(root: Path, shard: Shard, digest: str | None = None) -> Iterator[Row]:
    """The samples of a shard, as its lines have them.

    Args:
        shard: what lines and tar must agree with.
        digest: SHA-256 of the lines, where it is known.

    Raises:
        OSError: a file of it cannot be read.
        ValueError: damaged, or not what was packed.
    """
    path, tar = lines_path(root, shard.name), tar_path(root, shard.name)
    raw = read_bytes(path, limit=_MOST_BYTES, inside=root)
    if digest is not None and hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{path.name} is damaged: its content is not what was written")
    header, *lines = raw.splitlines() or [b""]
    if Shard.of(parse_json(header)) != shard or len(lines) != shard.samples:
        raise ValueError(f"{path.name} is of another pack")
    size = require_file(tar, inside=root).st_size
    if size != shard.bytes:
        raise ValueError(f"{tar.name} has {size:,} bytes, not {shard.bytes:,}")
    for line in lines:
        yield Row.of(parse_json(line), tar, size)


def read_header(root: Path, name: str) -> Shard:
    """What a shard's lines say of its tar. Raises as `read_shard`."""
    with open_file(lines_path(root, name), inside=root) as file:
        return Shard.of(parse_json(file.readline(4096)))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        where = Path(error.filename).name if error.filename else ""
        return f"{where}: {reason_of(error)}" if where else reason_of(error)
    return str(error)
