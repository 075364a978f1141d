"""The folder layout.

    objects/ID.png (or .jpg, .jpeg)   masks/ID.png   shadows/ID.png
    metadata.json: {"ID": {"theta": 15.0, "phi": 45.0, "size": 4.0, "object": "obj_0001", "track": "..."}}

`light_size` is read as `size`; `object` and `track` are optional. Names that start with a dot are ignored.
"""

import stat
from pathlib import Path

from shadowlab.data import (
    Entry,
    FileSource,
    Index,
    IndexedDataset,
    JsonObject,
    Problem,
    Role,
    Source,
    describe,
    parse_object,
    read_keys,
    read_text,
)
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.light import read_light
from shadowlab.tasks.shadow.pictures import ROLES, read_sample
from shadowlab.tasks.shadow.samples import Sample

METADATA = "metadata.json"
FOLDERS: dict[Role, str] = {"object": "objects", "mask": "masks", "shadow": "shadows"}
EXTENSIONS: dict[Role, tuple[str, ...]] = {
    "object": (".png", ".jpg", ".jpeg"),
    "mask": (".png",),
    "shadow": (".png",),
}
VALID_KEYS = ("theta", "phi", "size", "light_size", "object", "track")

Files = dict[str, FileSource | None]  # by sample id; None: a file that is there, with a problem already listed


class FolderDataset(IndexedDataset[Sample]):
    """Samples of a folder; see the module's text for the layout."""

    def __init__(self, path: str | Path, image_size: int, name: str | None = None) -> None:
        """Validate metadata and file names, decode nothing yet.

        Raises:
            UserError: the first problem found.
        """
        path = Path(path)
        super().__init__(name or path.resolve().name, path, index_folder(path), image_size, read_sample)


def index_folder(path: Path) -> Index:
    """All entries of the folder with all faults of metadata and file names. Pictures are not opened."""
    index = Index()
    files = {role: _list_files(path, role, index.problems) for role in ROLES}
    metadata = _read_metadata(path, index.problems)
    if metadata is None:
        return index
    index.entries = sorted(_read_entries(metadata, files, index.problems), key=lambda entry: entry.id)
    if not index.entries:
        index.problems.append(Problem(METADATA, "empty data set: no sample is listed; add entries"))
    known = {name for name, _ in metadata}
    for role in ROLES:
        for stem, source in (files[role] or {}).items():
            if source and stem not in known:
                index.problems.append(
                    Problem(stem, f"{source.name}: no entry in {METADATA}; add one or take the file out")
                )
    grouped = {name for name, value in metadata if isinstance(value, JsonObject) and "object" in dict(value)}
    alone = sum(entry.id not in grouped for entry in index.entries)
    if alone:
        index.notices.append(
            f"{alone} of {len(index.entries)} samples name no `object` in {METADATA}: each counts as an object of its "
            "own, so a split may put two pictures of one object on both sides"
        )
    return index


def _read_metadata(path: Path, problems: list[Problem]) -> JsonObject | None:
    try:
        return parse_object(_file_source(path, path / METADATA, METADATA).read(), METADATA)
    except UserError as error:
        problems.append(Problem(METADATA, str(error).removeprefix(f"{METADATA}: ")))
        return None


def _read_entries(metadata: JsonObject, files: dict[Role, Files | None], problems: list[Problem]) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for sample, value in metadata:
        messages: list[str] = []
        if sample in entries:
            problems.append(Problem(sample, f"{METADATA}: duplicate id; give each sample an id of its own"))
            continue
        if not _is_safe(sample):
            problems.append(Problem(sample, f"{METADATA}: unsafe id; use a plain file name without path or extension"))
            continue
        entries[sample] = _read_entry(sample, value, files, messages)
        problems += [Problem(sample, message) for message in messages]
    return list(entries.values())


def _read_entry(sample: str, value: object, files: dict[Role, Files | None], messages: list[str]) -> Entry:
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
        listed = files[role]
        if listed is None:  # the missing folder is a problem of its own
            continue
        if sample in listed:
            source = listed[sample]
            if source:
                sources[role] = source
        else:
            extensions = " or ".join(EXTENSIONS[role])
            messages.append(
                f"missing pair: no {FOLDERS[role]}/{sample}{extensions}; add the file or take the entry out"
            )
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
        children = sorted((path / folder).iterdir())
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
        try:
            if child.suffix.lower() not in EXTENSIONS[role]:
                raise UserError(f"{name}: not a {' or '.join(EXTENSIONS[role])} file; convert it or take it out")
            if child.stem in files:
                raise UserError(f"{name}: a second {role} of this sample; keep one")
            files[child.stem] = _file_source(path, child, name)
        except UserError as error:
            problems.append(Problem(child.stem, str(error)))
            files.setdefault(child.stem, None)
    return files


def _file_source(root: Path, path: Path, name: str) -> FileSource:
    """Raises UserError unless `path` is a plain file whose bytes lie inside `root`."""
    try:
        if _leads_out(root, path):
            raise UserError(f"{name}: a link that points out of the data folder; copy the file into it")
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        if path.is_symlink():
            raise UserError(f"{name}: a broken link; replace it by the file") from error
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{name}: missing; add the file") from error
        raise UserError(f"{name}: cannot be read ({error}); check the file") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name}: a directory where a file is expected; replace it by the file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name}: not a plain file; replace it by the file")
    return FileSource(path, name, status.st_size)


def _leads_out(root: Path, path: Path) -> bool:
    return path.is_symlink() and not path.resolve(strict=True).is_relative_to(root.resolve())
