"""JSON lines: the truth of a run. TensorBoard, tables and pages are views that can be rebuilt from them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """JSON-ready copy. Non-finite floats become the strings `NaN`, `Infinity`, `-Infinity` (as protobuf's JSON does),
    because bare NaN is not JSON; other floats keep 7 significant digits."""
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Inverse of `encode`, up to the rounding."""
    if isinstance(value, str):
        return _NONFINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


class RecordWriter:
    """Appends one JSON object a line and flushes it, so that a killed run keeps every finished line.

    Opening an existing file first drops a last line that a kill cut short, and, with `keep_until_step`, records of
    later steps, so that a resumed run continues where its checkpoint stands and steps stay monotone.
    """

    def __init__(self, path: Path, *, keep_until_step: int | None = None) -> None:
        if path.exists():
            self._trim(path, keep_until_step)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(encode(record), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _trim(path: Path, keep_until_step: int | None) -> None:
        kept = [
            record
            for record in read_records(path)
            if keep_until_step is None or record.get("step", 0) <= keep_until_step
        ]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(encode(r), allow_nan=False) + "\n" for r in kept), encoding="utf-8")
        temporary.replace(path)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete record of a file in order; a last line cut short by a kill is left out.

    Raises:
        ValueError: a line before the last is not JSON, naming file and line.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            yield decode(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}:{number}: not a JSON record ({error.msg})") from None
