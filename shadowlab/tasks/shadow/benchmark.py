"""The paper's benchmark: one .tar, or a folder of them, in WebDataset layout, read in place.

    KEY.image.png   KEY.mask.png   KEY.shadow.png   KEY.metadata.json      KEY = softness_control_000, ...

Layout and metadata follow `jasperai/controllable-shadow-generation-benchmark` (CC-BY-NC-4.0), the test set of
Tasar et al., arXiv 2412.11972. The image shows the object with its shadow; the mask takes it out.
"""

import math
import re
from collections import defaultdict
from pathlib import Path

from shadowlab.data import (
    EntriesWriter,
    Entry,
    Index,
    IndexedDataset,
    Problem,
    Role,
    SliceSource,
    Source,
    describe,
    indexed_once,
    list_members,
    parse_object,
    read_keys,
    read_number,
    read_text,
)
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import Light, light_position, read_light
from shadowlab.tasks.shadow.pictures import read_sample
from shadowlab.tasks.shadow.samples import Sample

IMAGES_PER_OBJECT = {"softness_control": 3, "horizontal_direction_control": 18, "vertical_direction_control": 9}
NUM_SAMPLES = 555
MEMBERS: dict[str, Role] = {"image.png": "object", "mask.png": "mask", "shadow.png": "shadow"}
METADATA = "metadata.json"
LAYOUT = "shadow benchmark 1"  # one more whenever the same files come to give another index
VALID_KEYS = (
    "theta", "phi", "size", "r", "light_location", "light_energy", "resolution_x", "resolution_y", "samples", "track",
)  # fmt: skip
LOCATION_TOLERANCE = 0.05  # scene units: a third of a degree at r = 8, far above the rounding in the files

NOTICE = (
    "this is the benchmark that the paper reports on (CC-BY-NC-4.0, non-commercial): training on it makes its scores "
    "meaningless"
)
_KEY = re.compile(r"(?P<track>\w+)_(?P<number>[0-9]+)")


class BenchmarkDataset(IndexedDataset[Sample]):
    """Samples of the benchmark. `notices` starts with the warning against training on it."""

    notice = NOTICE

    def __init__(self, path: str | Path, image_size: int) -> None:
        """List members and read all metadata, decode nothing yet.

        Raises:
            UserError: the first problem found.
        """
        path = Path(path)
        super().__init__(path.resolve().name, path, benchmark_index(path), image_size, read_sample)


def benchmark_index(path: Path, *, renew: bool = False) -> Index:
    """As `index_benchmark`; of large tars the kept index, where it still holds. renew: read the tars in any case."""
    return indexed_once(path, LAYOUT, lambda: [path, *_archives(path)], lambda: index_benchmark(path), renew=renew)


def _archives(path: Path) -> list[Path]:
    return sorted(path.glob("*.tar")) if path.is_dir() else [path]


def index_benchmark(path: Path) -> Index:
    """All entries of a .tar file or of all .tar files of a folder, with all faults of members and metadata."""
    index = Index(notices=[NOTICE])
    samples: dict[str, dict[str, SliceSource | None]] = defaultdict(dict)  # None: listed as faulty
    for archive in _archives(path):
        for name, source, fault in list_members(archive):
            key, _, suffix = name.partition(".")
            known = suffix in MEMBERS or suffix == METADATA
            if source is None:
                index.problems.append(
                    Problem(name, f"{archive.name}: {fault}") if name else Problem(archive.name, fault)
                )
                if known and _KEY.fullmatch(key):  # else its name is not to be trusted
                    samples[key].setdefault(suffix, None)
            elif not known:
                endings = ", ".join((*MEMBERS, METADATA))
                message = f"{name}: unknown member of {archive.name}; valid endings are {endings}"
                index.problems.append(Problem(key, message))
            elif suffix in samples[key]:
                index.problems.append(Problem(key, f"{name}: duplicate member, in {archive.name}; keep one"))
            else:
                samples[key][suffix] = source
    entries = EntriesWriter(path, tuple(MEMBERS.values()))
    for key, members in sorted(samples.items()):
        entries.add(_read_entry(key, members, index.problems))
    index.entries = entries.finish()
    if not index.entries and not index.problems:
        index.problems.append(Problem(path.name, "empty data set: no sample in it; fetch the benchmark again"))
    elif len(index.entries) != NUM_SAMPLES:
        index.notices.append(f"{len(index.entries)} of the benchmark's {NUM_SAMPLES} samples are here")
    return index


def _read_entry(key: str, members: dict[str, SliceSource | None], problems: list[Problem]) -> Entry:
    messages: list[str] = []
    for suffix in (*MEMBERS, METADATA):
        if suffix not in members:
            messages.append(f"missing member {key}.{suffix}; fetch the tar again")
    track, object_id = _read_key(key, messages)
    metadata = members.get(METADATA)
    light = _read_metadata(metadata, track, messages) if metadata else None
    sources: dict[Role, Source] = {role: source for suffix, role in MEMBERS.items() if (source := members.get(suffix))}
    problems += [Problem(key, message) for message in messages]
    return Entry(id=key, object_id=object_id, values=light, track=track, sources=sources)


def _read_key(key: str, messages: list[str]) -> tuple[str | None, str]:
    """Track and object id. Consecutive images show one object; each track has objects of its own."""
    match = _KEY.fullmatch(key)
    if not match:
        messages.append("key without a number; keys look like softness_control_000")
        return None, key
    track = match["track"]
    if track not in IMAGES_PER_OBJECT:
        messages.append(f"unknown track {track!r}; the tracks are {', '.join(IMAGES_PER_OBJECT)}")
        return None, key
    return track, f"{track}/object_{int(match['number']) // IMAGES_PER_OBJECT[track]:03d}"


def _read_metadata(source: SliceSource, track: str | None, messages: list[str]) -> Light | None:
    try:
        pairs = parse_object(source.read(), source.name)
    except UserError as error:
        messages.append(str(error))
        return None
    values = read_keys(pairs, VALID_KEYS, source.name, messages)
    light = read_light(values, source.name, messages)
    named_track = read_text(values, "track", source.name, messages)
    if named_track and track and named_track != track:
        messages.append(f"{source.name}: track is {named_track!r}, but the key says {track!r}; correct one of them")
    if light and "light_location" in values:
        _check_location(values, light, source.name, messages)
    return light


def _check_location(values: dict[str, object], light: Light, where: str, messages: list[str]) -> None:
    """The stored position must be the one that r, theta and phi give: a guard against angles of another convention."""
    text = read_text(values, "light_location", where, messages)
    radius = read_number(values, "r", where, messages)
    if text is None or radius is None:
        return
    try:
        stored = [float(part) for part in text.split(",")]
    except ValueError:
        stored = []
    if len(stored) != 3:
        messages.append(f"{where}: light_location is {describe(text)}; write x,y,z")
        return
    expected = light_position(light[0], light[1], radius)
    if not math.dist(stored, expected) <= LOCATION_TOLERANCE:  # NaN fails this too
        messages.append(
            f"{where}: light_location is {text}, but r, theta and phi give "
            f"{','.join(f'{value:.4f}' for value in expected)}; correct the angles"
        )
