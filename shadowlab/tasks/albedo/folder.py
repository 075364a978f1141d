"""The folder layout.

    beauty/ID.png (or .jpg, .jpeg)   albedo/ID.png (or .jpg, .jpeg)   valid/ID.png (optional: white counts, black does
    not)   metadata.json:
    {"colour_space": {"beauty": "srgb", "albedo": "linear"}, "samples": {"ID": {"object": "obj_0001"}}}

`metadata.json` and all that it holds are optional: without `samples` each pair of files is a sample, without `object`
each sample is an object of its own. `colour_space` says what the values of the files mean; the options
`task_options.beauty_space` and `albedo_space` say it where the data set does not. Names that start with a dot are
ignored.
"""

import os
import stat
from pathlib import Path

from shadowlab.data import (
    EntriesWriter,
    Entry,
    FileSource,
    Index,
    Problem,
    Role,
    Source,
    indexed_once,
)
from shadowlab.errors import UserError
from shadowlab.tasks.albedo.declared import METADATA, Metadata, read_metadata
from shadowlab.tasks.albedo.pictures import ROLES

FOLDERS: dict[Role, str] = {"beauty": "beauty", "albedo": "albedo", "valid": "valid"}
"""Role -> name of its folder."""
EXTENSIONS = (".png", ".jpg", ".jpeg")
LAYOUT = "albedo folder 1"  # one more whenever the same files come to give another index

Files = dict[str, tuple[str, int] | None]
"""Sample id to its file's name in its folder, and its size in bytes; None: it is there, with a problem listed."""


def folder_index(path: Path, *, renew: bool = False) -> Index:
    """As `index_folder`; of a large folder the kept index, where it still holds. renew: read the folder in any case."""

    def watched() -> list[Path]:
        return [one for one in (*(path / name for name in FOLDERS.values()), path / METADATA) if one.exists()]

    return indexed_once(path, LAYOUT, watched, lambda: index_folder(path), renew=renew)


def index_folder(path: Path) -> Index:
    """All entries of the folder with all faults of metadata and file names. Pictures are not opened."""
    index = Index()
    metadata = read_metadata(path, index.problems)
    files = {role: _list_files(path, role, index.problems) for role in ROLES}
    pairs = {stem for role in ("beauty", "albedo") for stem in files[role] or {}}
    ids = pairs if metadata.objects is None else set(metadata.objects)
    entries = EntriesWriter(path, ROLES)
    for name in sorted(ids):
        entries.add(_entry(path, name, files, metadata, index.problems))
    index.entries = entries.finish()
    if not ids:
        index.problems.append(Problem("beauty", "empty data set: no picture in beauty/ and albedo/; add pairs"))
    for role, listed in files.items():
        for stem, file in (listed or {}).items():
            if file and stem not in ids:
                where = f"{FOLDERS[role]}/{file[0]}"
                fix = f"no entry in {METADATA}; add one" if metadata.objects is not None else "no pair; add its beauty"
                index.problems.append(Problem(stem, f"{where}: {fix} or take the file out"))
    note_objects(index, metadata)
    return index


def note_objects(index: Index, metadata: Metadata) -> None:
    """A notice where samples are objects of their own for want of a name."""
    alone = sum(metadata.object_of(name) is None for name in index.entries.ids)
    if alone and len(index.entries) == len(set(index.entries.object_ids)):
        index.notices.append(
            f"{alone} of {len(index.entries)} samples name no `object` in {METADATA}: each counts as an object of its "
            "own, so a split may put two pictures of one object on both sides"
        )


def _entry(
    path: Path, name: str, files: dict[Role, Files | None], metadata: Metadata, problems: list[Problem]
) -> Entry:
    sources: dict[Role, Source] = {}
    for role in ROLES:
        listed = files[role]
        if listed is None:  # no such folder: of `valid` none is needed, of another one it is a problem of its own
            continue
        if name not in listed:
            if role != "valid":
                endings = " or ".join(EXTENSIONS)
                message = f"missing pair: no {FOLDERS[role]}/{name}{endings}; add the file or take the sample out"
                problems.append(Problem(name, message))
        elif (file := listed[name]) is not None:
            inside = f"{FOLDERS[role]}/{file[0]}"
            sources[role] = FileSource(path / inside, inside, file[1])
    return Entry(name, metadata.object_of(name) or name, None, None, sources)


def _list_files(path: Path, role: Role, problems: list[Problem]) -> Files | None:
    """Usable files of one role; None where its folder is missing."""
    folder = FOLDERS[role]
    try:
        if leads_out(path, path / folder):
            problems.append(Problem(folder, "a link that points out of the data folder; copy the files into it"))
            return None
        with os.scandir(path / folder) as found:
            children = sorted(found, key=lambda child: child.name)
    except FileNotFoundError:
        if role != "valid":
            problems.append(Problem(folder, f"the folder {folder}/ is missing; add it"))
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        problems.append(Problem(folder, f"the folder {folder}/ cannot be read ({error}); check it"))
        return None
    files: Files = {}
    for child in children:
        if child.name.startswith("."):
            continue
        name, stem = f"{folder}/{child.name}", Path(child.name).stem
        try:
            if Path(child.name).suffix.lower() not in EXTENSIONS:
                raise UserError(f"{name}: not a {' or '.join(EXTENSIONS)} file; convert it or take it out")
            if stem in files:
                raise UserError(f"{name}: a second {role} of this sample; keep one")
            files[stem] = child.name, plain_size(path, Path(child.path), name)
        except UserError as error:
            problems.append(Problem(stem, str(error)))
            files.setdefault(stem, None)
    return files


def plain_size(root: Path, place: Path, name: str) -> int:
    """Bytes. Raises UserError unless it is a plain file whose bytes lie inside `root`."""
    try:
        if leads_out(root, place):
            raise UserError(f"{name}: a link that points out of the data folder; copy the file into it")
        status = place.stat()
    except FileNotFoundError as error:
        fix = "a broken link; replace it by the file" if place.is_symlink() else "missing; add the file"
        raise UserError(f"{name}: {fix}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise UserError(f"{name}: cannot be read ({error}); check the file") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name}: not a plain file; replace it by the file")
    return status.st_size


def leads_out(root: Path, path: Path) -> bool:
    """Whether `path` is, or passes through, a link whose end is not inside `root`."""
    return not path.resolve(strict=True).is_relative_to(root.resolve())
