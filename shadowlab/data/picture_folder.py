"""The files of a data set in a folder: those that are pictures, and that lie inside of it."""

import os
import stat
from pathlib import Path

from shadowlab.data.sources import Problem, Role
from shadowlab.errors import UserError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")

PictureFiles = dict[str, tuple[str, int] | None]
"""Sample id to its file's name in its folder, and its size in bytes; None: it is there, with a problem listed."""


def list_pictures(
    path: Path, folder: str, role: Role, problems: list[Problem], *, needed: bool = True
) -> PictureFiles | None:
    """Usable files of one role in a folder of a data set; each fault is added to `problems`.

    Names that start with a dot are left out.

    Args:
        path: of the data set.
        folder: its name in there.
        needed: whether it is a problem that the folder is missing.

    Returns:
        None where there is no such folder.
    """
    try:
        if leads_out(path, path / folder):
            problems.append(Problem(folder, "a link that points out of the data folder; copy the files into it"))
            return None
        with os.scandir(path / folder) as found:
            children = sorted(found, key=lambda child: child.name)
    except FileNotFoundError:
        if needed:
            problems.append(Problem(folder, f"the folder {folder}/ is missing; add it"))
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        problems.append(Problem(folder, f"the folder {folder}/ cannot be read ({error}); check it"))
        return None
    files: PictureFiles = {}
    for child in children:
        if child.name.startswith("."):
            continue
        name, stem = f"{folder}/{child.name}", Path(child.name).stem
        try:
            if Path(child.name).suffix.lower() not in PICTURE_ENDINGS:
                raise UserError(f"{name}: not a {' or '.join(PICTURE_ENDINGS)} file; convert it or take it out")
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
