"""The folder layout.

    beauty/ID.png (or .jpg, .jpeg)   albedo/ID.png (or .jpg, .jpeg)   valid/ID.png (optional: white counts, black does
    not)   metadata.json:
    {"colour_space": {"beauty": "srgb", "albedo": "linear"}, "samples": {"ID": {"object": "obj_0001"}}}

`metadata.json` and all that it holds are optional: without `samples` each pair of files is a sample, without `object`
each sample is an object of its own. `colour_space` says what the values of the files mean; the options
`task_options.beauty_space` and `albedo_space` say it where the data set does not. Names that start with a dot are
ignored.
"""

from pathlib import Path

from shadowlab.data import (
    PICTURE_ENDINGS,
    EntriesWriter,
    Entry,
    FileSource,
    Index,
    PictureFiles,
    Problem,
    Role,
    Source,
    indexed_once,
    list_pictures,
)
from shadowlab.tasks.albedo.declared import METADATA, Metadata, read_metadata
from shadowlab.tasks.albedo.pictures import ROLES

FOLDERS: dict[Role, str] = {"beauty": "beauty", "albedo": "albedo", "valid": "valid"}
"""Role -> name of its folder."""
LAYOUT = "albedo folder 1"  # one more whenever the same files come to give another index


def folder_index(path: Path, *, renew: bool = False) -> Index:
    """As `index_folder`; of a large folder the kept index, where it still holds. renew: read the folder in any case."""

    def watched() -> list[Path]:
        return [one for one in (*(path / name for name in FOLDERS.values()), path / METADATA) if one.exists()]

    return indexed_once(path, LAYOUT, watched, lambda: index_folder(path), renew=renew)


def index_folder(path: Path) -> Index:
    """All entries of the folder with all faults of metadata and file names. Pictures are not opened."""
    index = Index()
    metadata = read_metadata(path, index.problems)
    files = {role: list_pictures(path, FOLDERS[role], role, index.problems, needed=role != "valid") for role in ROLES}
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
    path: Path, name: str, files: dict[Role, PictureFiles | None], metadata: Metadata, problems: list[Problem]
) -> Entry:
    sources: dict[Role, Source] = {}
    for role in ROLES:
        listed = files[role]
        if listed is None:  # no such folder: of `valid` none is needed, of another one it is a problem of its own
            continue
        if name not in listed:
            if role != "valid":
                endings = " or ".join(PICTURE_ENDINGS)
                message = f"missing pair: no {FOLDERS[role]}/{name}{endings}; add the file or take the sample out"
                problems.append(Problem(name, message))
        elif (file := listed[name]) is not None:
            inside = f"{FOLDERS[role]}/{file[0]}"
            sources[role] = FileSource(path / inside, inside, file[1])
    return Entry(name, metadata.object_of(name) or name, None, None, sources)
