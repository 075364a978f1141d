"""What is kept of each sample: a line of JSON, written when the sample is judged.

    OUT/part-0001-0000.jsonl   of the first call's first process; torn at its end where that was killed
    OUT/per_image.jsonl        all of them in the order of the data set, once each sample has one

A line: {"number", "sample", "object", "track", "trained_on", "conditions", "methods": {METHOD: {METRIC: [a value for
each seed, or one]}}, "control": {METHOD: {MEASURE: value}}}; `control` only where it was measured.

Legend: N samples of the data set.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from diagnostics.files import (
    LongLineError,
    append_to,
    create,
    open_file,
    parse_json,
    paths_in,
    read_lines,
    reason_of,
)
from shadowlab.errors import UserError

PER_IMAGE = "per_image.jsonl"
_MOST_OPEN = 64
_PART = re.compile(r"part-(?P<call>\d{4,})-(?P<rank>\d{4,})\.jsonl")

Line = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What a line must hold to be kept."""

    ids: Sequence[str]
    """Of the data set."""
    methods: Mapping[str, int]
    """Name -> number of values of each metric."""
    metrics: tuple[str, ...]
    has_control: Callable[[int], bool]
    """Whether control is measured of the sample of a number."""

    def number_of(self, line: Any) -> int | None:
        """The sample's, where all of the line is there and finite; else None."""
        if not isinstance(line, dict) or not isinstance(line.get("methods"), dict):
            return None
        number, methods = line.get("number"), line["methods"]
        if not isinstance(number, int) or not 0 <= number < len(self.ids) or line.get("sample") != self.ids[number]:
            return None
        if methods.keys() != self.methods.keys() or self.has_control(number) != ("control" in line):
            return None
        for name, count in self.methods.items():
            found = methods[name]
            if not isinstance(found, dict) or tuple(found) != self.metrics:
                return None
            if not all(_are_numbers(values, count) for values in found.values()):
                return None
        return number


class Lines:
    """The lines of one evaluation in its folder.

    Args:
        folder: it is there.
        wanted: others are as if they were not there.
    """

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder, self._wanted = folder, wanted
        self._file_of = np.full(len(wanted.ids), -1, np.int32)
        self._offset = np.zeros(len(wanted.ids), np.int64)
        self._files: list[Path] = []

    def look(self) -> np.ndarray:
        """Read all files; which samples have a line, (N,) bool."""
        self._file_of[:] = -1
        self._files = [self.folder / PER_IMAGE] if (self.folder / PER_IMAGE).is_file() else []
        self._files += self._parts()
        for number, file in enumerate(self._files):
            with _reading(file), open_file(file, inside=self.folder) as opened:
                offset = 0
                for raw in read_lines(opened, file.name):
                    sample = self._wanted.number_of(_parsed(raw)) if raw.endswith(b"\n") else None
                    if sample is not None and self._file_of[sample] < 0:
                        self._file_of[sample], self._offset[sample] = number, offset
                    offset += len(raw)
        return self._file_of >= 0

    def next_call(self) -> int:
        """A number that no part has yet."""
        return 1 + max(
            (int(found["call"]) for file in self._parts() if (found := _PART.fullmatch(file.name))), default=0
        )

    def writer(self, call: int, rank: int) -> "LineWriter":
        return LineWriter(self.folder / f"part-{call:04d}-{rank:04d}.jsonl")

    def merge(self) -> None:
        """All lines, of every sample, into `PER_IMAGE`; parts are removed. After `look`."""
        temporary = self.folder / f".{PER_IMAGE}.tmp"
        try:
            with create(temporary) as file, ExitStack() as stack:
                opened: dict[int, BufferedReader] = {}
                for number, offset in zip(self._file_of.tolist(), self._offset.tolist(), strict=True):
                    if number not in opened and len(opened) >= _MOST_OPEN:
                        stack.close()
                        opened.clear()
                    if number not in opened:
                        source = open_file(self._files[number], inside=self.folder)
                        opened[number] = stack.enter_context(source)
                    opened[number].seek(offset)
                    file.write(opened[number].readline())
            os.replace(temporary, self.folder / PER_IMAGE)
            for part in self._parts():
                part.unlink()
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Line]:
        """Those of `PER_IMAGE`, in their order."""
        return read_per_image(self.folder)

    def _parts(self) -> list[Path]:
        return [file for file in paths_in(self.folder, "part-*.jsonl") if _PART.fullmatch(file.name)]


class LineWriter:
    """Appends lines to a part; each is with the system when `write` returns, so that a killed process leaves it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BufferedWriter | None = None

    def write(self, line: Line) -> None:
        """Raises UserError where the disk refuses."""
        try:
            if self._file is None:
                self._file = append_to(self._path)
            self._file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path.parent, error) from error

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def read_per_image(folder: Path) -> Iterator[Line]:
    """The lines of a finished evaluation. Raises UserError where the file cannot be read."""
    file = folder / PER_IMAGE
    with _reading(file), open_file(file, inside=folder) as opened:
        for number, raw in enumerate(read_lines(opened, str(file)), 1):
            line = _parsed(raw)
            if not isinstance(line, dict):
                raise UserError(f"{file}:{number}: no sample of an evaluation; run the evaluation again")
            yield line


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What the file is not as one line for people."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)}); give another --out") from error
    except LongLineError as error:
        raise UserError(str(error)) from error


def _parsed(raw: bytes) -> Any:
    try:
        return parse_json(raw)
    except ValueError:
        return None


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, float | int) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({reason_of(error)}); free some space or give another --out")
