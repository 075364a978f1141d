"""The folder layout.

    input/ID.png (or .jpg, .jpeg)   target/ID.png   mask/ID.png

`mask/` is there for object-removal alone: white is the object with its shadow. `input/` may be missing where the edit
makes its input of the target. Each sample is an object of its own; a list (CSV) can say otherwise. Names that start
with a dot are ignored.
"""

from pathlib import Path

from shadowlab.data import (
    PICTURE_ENDINGS,
    EntriesWriter,
    Entry,
    FileSource,
    Index,
    Problem,
    Role,
    Source,
    indexed_once,
    list_pictures,
)
from shadowlab.tasks.editing.edits import Edit

LAYOUT = "editing folder 1"


def folder_index(path: Path, edit: Edit, *, renew: bool = False) -> Index:
    """As `index_folder`; of a large folder the kept index, where it still holds. renew: read the folder in any case."""

    def watched() -> list[Path]:
        return [one for one in (path / role for role in edit.roles) if one.exists()]

    return indexed_once(path, f"{LAYOUT} {edit.name}", watched, lambda: index_folder(path, edit), renew=renew)


def index_folder(path: Path, edit: Edit) -> Index:
    """All entries of the folder with all faults of file names. Pictures are not opened."""
    index = Index()
    files = {
        role: list_pictures(path, role, role, index.problems, needed=not (role == "input" and edit.makes_input))
        for role in edit.roles
    }
    present = [role for role in edit.roles if files[role] is not None]
    ids = sorted({stem for role in present for stem in files[role] or {}})
    entries = EntriesWriter(path, edit.roles)
    for name in ids:
        sources: dict[Role, Source] = {}
        for role in present:
            listed = files[role] or {}
            if name not in listed:
                message = (
                    f"missing pair: no {role}/{name}{' or '.join(PICTURE_ENDINGS)}; add the file or take the rest out"
                )
                index.problems.append(Problem(name, message))
            elif (file := listed[name]) is not None:
                inside = f"{role}/{file[0]}"
                sources[role] = FileSource(path / inside, inside, file[1])
        entries.add(Entry(name, name, None, None, sources))
    index.entries = entries.finish()
    if not ids and not index.problems:
        index.problems.append(Problem("target", "empty data set: no picture in its folders; add pairs"))
    if ids:
        index.notices.append(
            f"each of the {len(ids)} samples counts as an object of its own, so a split may put two pictures of one "
            "scene on both sides; a list (CSV) with the column `object` says otherwise"
        )
    return index
