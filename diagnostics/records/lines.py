"""JSON lines: the truth of a run. TensorBoard, tables and pages are views that can be rebuilt from them."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any, cast

from diagnostics.records.kinds import Record

_LONGEST = 2**28  # bytes of a line; a record of a thousand layers takes less than 2**20
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
    """

    def __init__(self, path: Path, *, keep_until_step: int | None = None) -> None:
        if path.exists():
            _trim(path, keep_until_step)
        self._file: BufferedWriter = path.open("ab")

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
    with path.open("ab") as file:
        file.write(_line(record))


def read_records(path: Path) -> Iterator[Record]:
    """Every complete record of a file in order; a last line cut short by a kill is left out.

    Raises:
        ValueError: a line that is complete, or not the last, is not a JSON object; names file and line.
    """
    for line, record in _lines(path):
        # Half of the time: most lines have no such word.
        yield cast(Record, decode(record) if b"NaN" in line or b"Infinity" in line else record)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(encode(dict(record)), allow_nan=False).encode("ascii") + b"\n"


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each complete line without its end, with what it says."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, _LONGEST), b""), 1):
            if len(line) == _LONGEST:
                raise ValueError(f"{path}:{number}: not a JSON record ({_LONGEST / 2**20:g} MiB or more); {_REPAIR}")
            try:
                record = json.loads(line)
                problem = None if isinstance(record, dict) else "not an object"
            except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors; brackets without end
                problem = str(error)
            if problem is None:
                yield line.rstrip(b"\r\n"), record
            elif line.endswith(b"\n"):  # only the last line can lack its end
                raise ValueError(f"{path}:{number}: not a JSON record ({problem}); {_REPAIR}")


def _trim(path: Path, keep_until_step: int | None) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        for line, record in _lines(path):
            step = record.get("step")
            if keep_until_step is None or not isinstance(step, int) or step <= keep_until_step:
                file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
