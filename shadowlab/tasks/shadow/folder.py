"""The folder layout.

    objects/ID.png (or .jpg, .jpeg)   masks/ID.png   shadows/ID.png
    metadata.json: {"ID": {"theta": 15.0, "phi": 45.0, "size": 4.0, "object": "obj_0001", "track": "..."}}

`light_size` is read as `size`; `object` and `track` are optional. Names that start with a dot are ignored.
"""

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from shadowlab.data import (
    Entries,
    EntriesWriter,
    Entry,
    FileSource,
    Index,
    IndexedDataset,
    JsonObject,
    Problem,
    Role,
    Source,
    describe,
    indexed_once,
    parse_object,
    read_keys,
    read_text,
)
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import read_light
from shadowlab.tasks.shadow.pictures import ROLES, read_sample
from shadowlab.tasks.shadow.samples import Sample

METADATA = "metadata.json"
LAYOUT = "shadow folder 1"  # one more whenever the same files come to give another index
FOLDERS: dict[Role, str] = {"object": "objects", "mask": "masks", "shadow": "shadows"}
EXTENSIONS: dict[Role, tuple[str, ...]] = {
    "object": (".png", ".jpg", ".jpeg"),
    "mask": (".png",),
    "shadow": (".png",),
}
VALID_KEYS = ("theta", "phi", "size", "light_size", "object", "track")

Files = dict[str, tuple[str, int] | None]
"""Sample id to its file's name in its folder, and its size in bytes; None: it is there, with a problem listed."""


@dataclass(frozen=True)
class _Folder:
    """What lies in a data set's folders."""

    root: Path
    files: dict[Role, Files | None]
    """None where a folder is missing, which is a problem of its own."""

    def source(self, role: Role, sample: str) -> FileSource | None:
        """Its picture, where there is one that can be used."""
        file = (self.files[role] or {}).get(sample)
        if file is None:
            return None
        name = f"{FOLDERS[role]}/{file[0]}"
        return FileSource(self.root / name, name, file[1])


class FolderDataset(IndexedDataset[Sample]):
    """Samples of a folder; see the module's text for the layout."""

    def __init__(self, path: str | Path, image_size: int, name: str | None = None) -> None:
        """Validate metadata and file names, decode nothing yet.

        Raises:
            UserError: the first problem found.
        """
        path = Path(path)
        super().__init__(name or path.resolve().name, path, folder_index(path), image_size, read_sample)


def folder_index(path: Path, *, renew: bool = False) -> Index:
    """As `index_folder`; of a large folder the kept index, where it still holds. renew: read the folder in any case."""
    watched = [path / name for name in (*FOLDERS.values(), METADATA)]
    return indexed_once(path, LAYOUT, lambda: watched, lambda: index_folder(path), renew=renew)


def index_folder(path: Path) -> Index:
    """All entries of the folder with all faults of metadata and file names. Pictures are not opened."""
    index = Index()
    folder = _Folder(path, {role: _list_files(path, role, index.problems) for role in ROLES})
    metadata = _read_metadata(path, index.problems)
    if metadata is None:
        return index
    index.entries, alone = _read_entries(metadata, folder, index.problems)
    if not index.entries:
        index.problems.append(Problem(METADATA, "empty data set: no sample is listed; add entries"))
    known = {name for name, _ in metadata}
    for role in ROLES:
        for stem, file in (folder.files[role] or {}).items():
            if file and stem not in known:
                where = f"{FOLDERS[role]}/{file[0]}"
                index.problems.append(Problem(stem, f"{where}: no entry in {METADATA}; add one or take the file out"))
    if alone:
        index.notices.append(
            f"{alone} of {len(index.entries)} samples name no `object` in {METADATA}: each counts as an object of its "
            "own, so a split may put two pictures of one object on both sides"
        )
    return index


def _read_metadata(path: Path, problems: list[Problem]) -> JsonObject | None:
    try:
        size = _plain_size(path, path / METADATA, METADATA)
        return parse_object(FileSource(path / METADATA, METADATA, size).read(), METADATA)
    except UserError as error:
        problems.append(Problem(METADATA, str(error).removeprefix(f"{METADATA}: ")))
        return None


def raw_lights(path: Path) -> dict[str, tuple[float, float, float]]:
    """Id -> theta, phi and size as the metadata of a folder have them, out of range, too; what is no number, or lies
    elsewhere, is left out."""
    if not (path / METADATA).is_file():
        return {}
    found = {}
    for sample, value in _read_metadata(path, []) or ():
        if isinstance(value, JsonObject):
            given = dict(value)
            light = [given.get("theta"), given.get("phi"), given.get("size", given.get("light_size"))]
            if all(isinstance(one, int | float) and not isinstance(one, bool) for one in light):
                theta, phi, size = (float(one) for one in light)  # type: ignore[arg-type]
                if all(map(math.isfinite, (theta, phi, size))):
                    found[sample] = (theta, phi, size)
    return found


def _read_entries(metadata: JsonObject, folder: _Folder, problems: list[Problem]) -> tuple[Entries, int]:
    """All entries, and how many of them name no object."""
    entries = EntriesWriter(folder.root, ROLES)
    seen: set[str] = set()
    alone = 0
    for sample, value in metadata:
        messages: list[str] = []
        if sample in seen:
            problems.append(Problem(sample, f"{METADATA}: duplicate id; give each sample an id of its own"))
            continue
        if not _is_safe(sample):
            problems.append(Problem(sample, f"{METADATA}: unsafe id; use a plain file name without path or extension"))
            continue
        seen.add(sample)
        entries.add(_read_entry(sample, value, folder, messages))
        alone += not (isinstance(value, JsonObject) and any(key == "object" for key, _ in value))
        problems += [Problem(sample, message) for message in messages]
    return entries.finish(), alone


def _read_entry(sample: str, value: object, folder: _Folder, messages: list[str]) -> Entry:
    light, object_id, track = None, None, None
    if isinstance(value, JsonObject):
        values = read_keys(value, VALID_KEYS, METADATA, messages)
        if "light_size" in values:
            if "size" in values:
                messages.append(f"{METADATA}: both 'size' and 'light_size' are given; keep 'size'")
            else:
                values["size"] = values["light_size"]
        light = read_light(values, METADATA, messages)
        object_id = read_text(values, "object", METADATA, messages)
        track = read_text(values, "track", METADATA, messages)
    else:
        messages.append(f"{METADATA}: the entry is {describe(value)}, expected an object with theta, phi and size")
    sources: dict[Role, Source] = {}
    for role in ROLES:
        listed = folder.files[role]
        if listed is None:  # the missing folder is a problem of its own
            continue
        if sample not in listed:
            extensions = " or ".join(EXTENSIONS[role])
            messages.append(
                f"missing pair: no {FOLDERS[role]}/{sample}{extensions}; add the file or take the entry out"
            )
        elif source := folder.source(role, sample):
            sources[role] = source
    return Entry(id=sample, object_id=object_id or sample, values=light, track=track, sources=sources)


def _is_safe(sample: str) -> bool:
    return bool(sample) and not sample.startswith(".") and not any(c in "/\\" or not c.isprintable() for c in sample)


def _list_files(path: Path, role: Role, problems: list[Problem]) -> Files | None:
    """Usable files of one role; None where its folder is missing."""
    folder = FOLDERS[role]
    try:
        if _leads_out(path, path / folder):
            problems.append(Problem(folder, "a link that points out of the data folder; copy the files into it"))
            return None
        with os.scandir(path / folder) as found:
            children = sorted(found, key=lambda child: child.name)
    except FileNotFoundError:
        problems.append(Problem(folder, f"the folder {folder}/ is missing; add it"))
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        problems.append(Problem(folder, f"the folder {folder}/ cannot be read ({error}); check it"))
        return None
    files: Files = {}
    for child in children:
        if child.name.startswith("."):
            continue
        name = f"{folder}/{child.name}"
        stem, suffix = _stem_and_suffix(child.name)
        try:
            if suffix.lower() not in EXTENSIONS[role]:
                raise UserError(f"{name}: not a {' or '.join(EXTENSIONS[role])} file; convert it or take it out")
            if stem in files:
                raise UserError(f"{name}: a second {role} of this sample; keep one")
            files[stem] = child.name, _plain_size(path, child, name)
        except UserError as error:
            problems.append(Problem(stem, str(error)))
            files.setdefault(stem, None)
    return files


def _stem_and_suffix(name: str) -> tuple[str, str]:
    """As pathlib has them, without an object for each of a million files."""
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if 0 < dot < len(name) - 1 else (name, "")


def _plain_size(root: Path, place: Path | os.DirEntry[str], name: str) -> int:
    """Bytes. Raises UserError unless it is a plain file whose bytes lie inside `root`."""
    is_link = place.is_symlink()
    try:
        if is_link and _leads_out(root, Path(place)):
            raise UserError(f"{name}: a link that points out of the data folder; copy the file into it")
        status = place.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        if is_link:
            raise UserError(f"{name}: a broken link; replace it by the file") from error
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{name}: missing; add the file") from error
        raise UserError(f"{name}: cannot be read ({error}); check the file") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name}: a directory where a file is expected; replace it by the file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name}: not a plain file; replace it by the file")
    return status.st_size


def _leads_out(root: Path, path: Path) -> bool:
    return path.is_symlink() and not path.resolve(strict=True).is_relative_to(root.resolve())
