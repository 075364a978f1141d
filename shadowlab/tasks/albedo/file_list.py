"""Marigold's layout: a text file with a pair a line, here of beauty and albedo.

    train/scene_01/beauty_0001.png train/scene_01/albedo_0001.png [train/scene_01/valid_0001.png]

Paths are relative to the folder of the list. A sample's id is its beauty's path without what all share and without its
ending, `/` written as `__`; its object is the one that a metadata.json next to the list names, else the folder of its
beauty where the list has several folders, else itself. Empty lines and lines that begin with # are skipped.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from shadowlab.data import (
    EntriesWriter,
    Entry,
    FileSource,
    Index,
    Problem,
    Role,
    Source,
    indexed_once,
    one_line,
    plain_size,
    read_file,
)
from shadowlab.errors import UserError
from shadowlab.tasks.albedo.declared import METADATA, Metadata, is_safe, read_metadata
from shadowlab.tasks.albedo.folder import note_objects
from shadowlab.tasks.albedo.pictures import ROLES

LAYOUT = "albedo list 1"
Line = tuple[int, tuple[PurePosixPath, ...]]
"""Its number, from 1, and its two or three paths."""


def list_index(path: Path, *, renew: bool = False) -> Index:
    """As `index_list`; of a long list the kept index, where it still holds. renew: read the list in any case."""

    def watched() -> list[Path]:
        return [one for one in (path, path.parent / METADATA) if one.exists()]

    return indexed_once(path.parent, f"{LAYOUT} {path.name}", watched, lambda: index_list(path), renew=renew)


def index_list(path: Path) -> Index:
    """All entries of the list with all its faults. Pictures are not opened."""
    index, root = Index(), path.parent
    metadata = read_metadata(root, index.problems)
    lines = list(_lines(path, index.problems))
    names = _names([paths[0] for _, paths in lines])
    folders = {paths[0].parent for _, paths in lines}
    entries = EntriesWriter(root, ROLES)
    first_line: dict[str, int] = {}
    for (number, paths), name in zip(lines, names, strict=True):
        if name in first_line:
            index.problems.append(
                Problem(name, f"{path.name}, line {number}: the beauty of line {first_line[name]} again; keep one")
            )
            continue
        first_line[name] = number
        place = f"{path.name}, line {number}"
        sources = _sources(root, paths, place, name, index.problems)
        own = str(paths[0].parent) if len(folders) > 1 else name
        if not is_safe(name):
            index.problems.append(Problem(name, f"{place}: unsafe name; use printable characters without backslashes"))
        entries.add(Entry(name, metadata.object_of(name) or own, None, None, sources))
    index.entries = entries.finish()
    if not lines and not index.problems:
        index.problems.append(Problem(path.name, "empty data set: no pair is listed; add lines"))
    if len(folders) > 1 and metadata.objects is None:
        index.notices.append(
            f"{path.name}: the {len(folders)} folders of the beauties count as objects: a split keeps each together"
        )
    else:
        note_objects(index, metadata if metadata.objects is not None else Metadata())
    return index


def has_masks(path: Path) -> bool:
    """Whether the first line names a valid mask. False where the list cannot be read."""
    first = next(_lines(path, []), None)
    return first is not None and len(first[1]) == len(ROLES)


def _lines(path: Path, problems: list[Problem]) -> Iterator[Line]:
    try:
        text = read_file(path).decode()
    except UserError as error:
        problems.append(Problem(path.name, str(error)))
        return
    except UnicodeDecodeError as error:
        problems.append(Problem(path.name, f"not UTF-8 at byte {error.start}; save it as UTF-8"))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (2, 3):
            problems.append(
                Problem(path.name, f"line {number}: {len(words)} words; write `beauty albedo` or `beauty albedo valid`")
            )
            continue
        paths = tuple(PurePosixPath(word) for word in words)
        if bad := next((one for one in paths if one.is_absolute() or ".." in one.parts), None):
            message = (
                f"line {number}: {one_line(str(bad))} leads out of the list's folder; put the list above its files"
            )
            problems.append(Problem(path.name, message))
            continue
        yield number, paths


def _names(beauties: Sequence[PurePosixPath]) -> list[str]:
    """Ids: paths without their common beginning and without their endings."""
    common = list(beauties[0].parent.parts) if beauties else []
    for one in beauties:
        parts = one.parent.parts
        common = common[
            : next((i for i, part in enumerate(common) if i >= len(parts) or parts[i] != part), len(common))
        ]
    return ["__".join(one.with_suffix("").parts[len(common) :]) for one in beauties]


def _sources(
    root: Path, paths: Sequence[PurePosixPath], place: str, name: str, problems: list[Problem]
) -> dict[Role, Source]:
    found: dict[Role, Source] = {}
    for role, path in zip(ROLES, paths, strict=False):
        try:
            found[role] = FileSource(root / path, str(path), plain_size(root, root / path, str(path)))
        except UserError as error:
            problems.append(Problem(name, f"{place}: {error}"))
    return found
