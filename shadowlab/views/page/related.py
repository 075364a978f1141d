"""The folders of the stages that belong together: check-forward, overfit, and the training that they were proofs for.

A training notes where its required stages passed, in required-stages.json. They lie inside its folder or next to it;
what a note says of any other place is not followed.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diagnostics.files import is_inside, read_json
from shadowlab.runs import REQUIRED

PROOFS = "required-stages.json"
_MOST = 500  # folders next to this one that are looked at
_LARGEST = 64 * 1024  # bytes of a note


@dataclass(frozen=True)
class Related:
    """One stage of the chain."""

    stage: str
    folder: Path
    is_this: bool
    """Whether it is the run that the page is about."""
    address: str
    """Of its page, or of its folder where it has no page; relative to the page, empty for the run itself."""
    has_page: bool


def related_stages(run: Path, page: Path) -> list[Related]:
    """The chain that a run is part of, in the order of its stages; empty where it stands alone.

    Args:
        run: its folder.
        page: where the page is to lie.
    """
    for training in _trainings(run):
        proofs = {name: place for name, place in _proofs(training).items() if _is_run(place)}
        if proofs and (_same(training, run) or any(_same(place, run) for place in proofs.values())):
            return [_related(name, place, run, page) for name, place in {**proofs, "train": training}.items()]
    return []


def _related(stage: str, place: Path, run: Path, page: Path) -> Related:
    own = place / "reports" / "report.html"
    has_page, is_this = own.is_file() and is_inside(own, place), _same(place, run)
    target = own if has_page else place
    relative = os.path.relpath(target.absolute(), page.absolute().parent)
    address = "" if is_this else quote(relative if has_page else f"{relative}/")
    address = address if not address or address.startswith(".") else f"./{address}"
    return Related(stage, place, is_this, address, has_page)


def _trainings(run: Path) -> Iterator[Path]:
    """Folders that may have noted this run: itself, those around it, then those next to it, the newest first."""
    whole = run.absolute()
    yield from (place for place in (run, whole.parent, whole.parent.parent) if (place / PROOFS).is_file())
    beside: list[tuple[float, Path]] = []
    try:
        with os.scandir(whole.parent) as entries:
            for number, entry in enumerate(entries):
                if number >= _MOST:
                    break
                note = Path(entry.path) / PROOFS
                if entry.is_dir(follow_symlinks=False) and note.is_file():
                    beside.append((note.stat().st_mtime, Path(entry.path)))
    except OSError:  # a folder that may not be listed holds nothing that could be linked
        return
    yield from (run.parent / place.name for _, place in sorted(beside, reverse=True))


def _proofs(training: Path) -> dict[str, Path]:
    """Stage -> folder, of what lies inside the training's folder or next to it."""
    note = training / PROOFS
    try:
        content: Any = read_json(note, limit=_LARGEST, inside=training)
    except (OSError, ValueError):  # none, or none that could be followed
        return {}
    found = {}
    for stage, text in content.items() if isinstance(content, Mapping) else ():
        if isinstance(text, str) and (place := _nearby(training, text)) is not None:
            found[str(stage)] = place
    return found


def _nearby(training: Path, noted: str) -> Path | None:
    """The noted folder, found by its name: runs are moved as wholes, and notes are of another current folder."""
    parts = Path(noted).parts
    if not parts or ".." in parts:
        return None
    name = training.absolute().name
    if name in parts[:-1]:  # inside the training's own folder
        return training.joinpath(*parts[len(parts) - parts[::-1].index(name) :])
    if len(parts) > 2 and parts[-2] == REQUIRED:  # inside that of another training
        return training.parent.joinpath(*parts[-3:])
    if (training / parts[-1]).is_dir():
        return training / parts[-1]
    return training.parent / parts[-1]


def _is_run(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink() and (place / "config.yaml").is_file()


def _same(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute() or os.path.realpath(one) == os.path.realpath(other)
