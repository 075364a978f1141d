"""JSON lines: the truth of a run. TensorBoard, tables and pages are views that can be rebuilt from them."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, BinaryIO, cast

from diagnostics.files import append_to, create, open_file, parse_json, read_lines
from diagnostics.records.kinds import Record

_REPAIR = "remove or repair this line to go on"
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def rounded(value: float) -> float:
    """What a record keeps of a number: 7 significant digits, as many as float32 has. NaN and Inf as they are."""
    return float(f"{value:.7g}") if math.isfinite(value) else value


def encode(value: Any) -> Any:
    """JSON-ready copy of nested dicts, lists, tuples, strings, numbers, bools and None.

    Non-finite floats become the strings `NaN`, `Infinity`, `-Infinity` (as protobuf's JSON does), because bare NaN
    is not JSON; other floats keep 7 significant digits. A string that is one of these words gets a backslash in
    front, and one that is such a word behind backslashes another, so that text stays text. Keys become strings.

    Raises:
        TypeError: anything else, such as a tensor or a path.
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return rounded(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return f"\\{value}" if value.lstrip("\\") in _NONFINITE else value
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    raise TypeError(f"a record holds dicts, lists, strings, numbers, bools and None, not {type(value).__name__}")


def decode(value: Any) -> Any:
    """Inverse of `encode`, up to the rounding; tuples come back as lists."""
    if isinstance(value, str):
        if value in _NONFINITE:
            return _NONFINITE[value]
        return value[1:] if value.startswith("\\") and value.lstrip("\\") in _NONFINITE else value
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


class RecordWriter:
    """Appends one JSON object a line and flushes it, so that a killed run keeps every finished line.

    Opening an existing file first drops a last line that a kill cut short, and, with `keep_until_step`, records of
    later steps, so that a resumed run continues where its checkpoint stands and steps stay monotone. Records without
    a `step` stay. Lines that stay are not touched.

    Raises:
        ValueError: an existing file is damaged, as `read_records`.
        OSError: the disk refuses, or something else than a file has its name, a link too.
    """

    def __init__(self, path: Path, *, keep_until_step: int | None = None) -> None:
        with append_to(path):  # refuses what is no file of its own before anything is done to it
            pass
        if path.stat().st_size:
            _trim(path, keep_until_step)
        self._file: BufferedWriter = append_to(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; on disk, as far as the operating system goes, when this returns.

        Raises:
            OSError: the disk refuses; the writer is closed, and a cut line is dropped when the file is opened again.
        """
        # One write of a whole line: a kill between two writes would leave half of it.
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError:
            self._file.raw.close()  # what is left of the line must not be tried again when the file is closed
            raise

    def close(self) -> None:
        self._file.close()


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a file whose writer is closed, without reading the file.

    Raises:
        OSError: the disk refuses.
    """
    with append_to(path) as file:
        file.write(_line(record))


def read_records(path: Path) -> Iterator[Record]:
    """Every complete record of a file in order; a last line cut short by a kill is left out.

    Raises:
        ValueError: a line that is complete, or not the last, is not a JSON object; names file and line.
        OSError: the file cannot be read, is something else than a file, or a link that leads out of its folder.
    """
    with open_records(path) as file:
        for _, record in lines_of(file, path):
            yield cast(Record, record)


def open_records(path: Path) -> BufferedReader:
    """A file of records, to be read.

    Raises:
        OSError: as `read_records`.
    """
    return open_file(path, inside=path.parent)


def lines_of(file: BinaryIO, path: Path, *, number: int = 1) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines that follow in a file, as they are, with their records. A last line without an end may be cut short,
    and is left out then.

    Args:
        path: of the file, for errors.
        number: of the first line that is read, from 1.

    Raises:
        ValueError: as `read_records`.
    """
    for count, line in enumerate(read_lines(file, str(path)), number):
        try:
            record = parse(line)
            problem = None if isinstance(record, dict) else "not an object"
        except ValueError as error:  # JSON's and UTF-8's errors; brackets without end
            problem = str(error)
        if problem is None:
            yield line, record
        elif line.endswith(b"\n"):  # only the last line can lack its end
            raise ValueError(f"{path}:{count}: not a JSON record ({problem}); {_REPAIR}")


def parse(line: bytes) -> Any:
    """What a line says, with NaN, Inf and text as they were before `encode`.

    Raises:
        ValueError: it is not JSON.
    """
    if b"NaN" not in line and b"Infinity" not in line:  # half of the time: most lines have no such word
        return parse_json(line, is_exact=False)
    if b"\\" not in line:  # no text is one of the words behind backslashes
        bare = line
        for word in _NONFINITE:
            bare = bare.replace(b'"%b"' % word.encode(), word.encode())
        with suppress(ValueError):  # a key may be such a word
            return parse_json(bare, is_exact=False)
    return decode(parse_json(line))


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(encode(dict(record)), allow_nan=False).encode("ascii") + b"\n"


def _trim(path: Path, keep_until_step: int | None) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with create(temporary) as file:
            with open_records(path) as before:
                for line, record in lines_of(before, path):
                    step = record.get("step")
                    if keep_until_step is None or not isinstance(step, int) or step <= keep_until_step:
                        file.write(line.rstrip(b"\r\n") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
