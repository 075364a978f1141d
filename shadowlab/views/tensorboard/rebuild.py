"""A run's TensorBoard view rebuilt from its records and from the pictures it saved."""

import fnmatch
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image

from diagnostics.board import block_of
from diagnostics.files import paths_in, read_bytes, remove_tree
from diagnostics.records import TrainingStep, read_records
from shadowlab.errors import UserError
from shadowlab.views.tensorboard.board import Board

FOLDER = "tensorboard-rebuilt"
_PICTURE = re.compile(r"(?:(?P<name>.+)-)?step-(?P<step>\d+)")
_GROUPS = ("overfit", "train")  # a picture's file may begin with one; others are of validations


@dataclass(frozen=True)
class Rebuilt:
    """What was rebuilt."""

    folder: Path
    """The new view."""
    num_records: int
    num_pictures: int
    in_full: tuple[str, ...]
    """Layers and parameters that are drawn at every measured step."""


def rebuild_board(run: Path, patterns: Sequence[str] = ()) -> Rebuilt:
    """Write `run`/tensorboard-rebuilt, in place of an earlier one, and leave `run`/tensorboard as it is.

    Args:
        patterns: shell patterns over names of layers; every statistic of every record is drawn of those that match one
            and of their parameters, whatever the bytes.

    Raises:
        UserError: the run has no records, or a damaged one, or a pattern matches nothing, or the disk refuses.
    """
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{metrics}: missing, so there is nothing to rebuild from; name a run that trained")
    folder, new = run / FOLDER, run / f"{FOLDER}.tmp"
    for place in (folder, new):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UserError(f"{place}: in the way of the new view, and not a folder of its own; move or remove it")
    remove_tree(new)
    chosen = _Chosen(patterns)
    try:
        board = Board(new, in_full=chosen)
        try:
            num_records = num_pictures = 0
            pictures = saved_pictures(run / "samples")
            for record in read_records(metrics):
                with _named(metrics, num_records + 1):
                    while pictures and pictures[0][2] < record.get("step", -1):  # in the order in which they were made
                        num_pictures += _add(board, *pictures.pop(0))
                    board.write(record)
                    measured = cast(TrainingStep, record)
                    chosen.seen |= dict.fromkeys((*measured.get("layers", {}), *measured.get("parameters", {})))
                num_records += 1
            num_pictures += sum(_add(board, *picture) for picture in pictures)
        finally:
            board.close()
        chosen.require_all_used(run)
        remove_tree(folder)
        new.replace(folder)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or new}: {error.strerror or error}, so {folder} cannot be made; free the disk and make "
            f"{run} readable and writable, or rebuild a copy of it elsewhere"
        ) from error
    finally:
        with suppress(OSError):  # what is in the way is said at the next try
            remove_tree(new)
    return Rebuilt(folder, num_records, num_pictures, tuple(name for name in chosen.seen if chosen(name)))


@contextmanager
def _named(metrics: Path, number: int) -> Iterator[None]:
    """Raise UserError for a record that no version wrote: one whose step is no number, whose layers are a list."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise UserError(f"{metrics}: record {number} is damaged ({said}); remove its line to go on") from error


class _Chosen:
    """Whether a layer or parameter is asked for; remembers what there was to choose from."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._known: dict[str, bool] = {}
        self.seen: dict[str, None] = {}

    def __call__(self, name: str) -> bool:
        if name not in self._known:
            self._known[name] = any(_matches(name, pattern) for pattern in self._patterns)
        return self._known[name]

    def require_all_used(self, run: Path) -> None:
        for pattern in self._patterns:
            if not any(_matches(name, pattern) for name in self.seen):
                blocks = list(dict.fromkeys(map(block_of, self.seen)))
                there = f"blocks are {', '.join(blocks)}; all of one: '{blocks[0]}*'" if blocks else "it has none"
                raise UserError(f"--layers {pattern}: matches no layer that {run} has records of; {there}")


def _matches(name: str, pattern: str) -> bool:
    """Of a layer's name, or of the layer that a parameter belongs to."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.rpartition(".")[0], pattern)


def saved_pictures(samples: Path) -> list[tuple[str, Path, int]]:
    """(tag, file, step), by ascending step."""
    tagged = ((picture_tag(file.stem), file) for file in paths_in(samples, "*.png", inside=samples.parent))
    found = [(known[0], file, known[1]) for known, file in tagged if known is not None]
    return sorted(found, key=lambda one: (one[2], one[0]))


def picture_tag(stem: str) -> tuple[str, int] | None:
    """Tag and step of a saved picture by its file's name, as the run's own view has it; None of other files.

    `step-00000004` is validation/comparison, `light-sweep-step-00000004` validation/light_sweep, and
    `overfit-step-00000004` overfit/comparison.
    """
    found = _PICTURE.fullmatch(stem)
    if found is None:
        return None
    group, _, name = (found["name"] or "").partition("-")
    if group not in _GROUPS:
        group, name = "validation", found["name"] or ""
    return f"{group}/{name.replace('-', '_') or 'comparison'}", int(found["step"])


def _add(board: Board, tag: str, file: Path, step: int) -> int:
    """Returns how many pictures were added: one."""
    with opened_picture(file) as (picture, content):
        board.add(tag, picture, step, content)
    return 1


@contextmanager
def opened_picture(file: Path) -> Iterator[tuple[Image.Image, bytes]]:
    """A PNG of a run's samples/ and its bytes. Raises UserError where it is none."""
    try:
        content = read_bytes(file, inside=file.parents[1])
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            yield picture, content
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow raises
        raise UserError(f"{file}: cannot be read as a picture; remove it to go on without") from error
