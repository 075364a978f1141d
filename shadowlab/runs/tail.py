"""The last records of a run, read from the end of its file: a long run is looked at as fast as a short one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diagnostics.files import open_file, parse_json
from diagnostics.records import decode

_MOST_BYTES = 16 * 2**20  # statistics of a thousand layers take 0.7 MB a record
_HEAD_BYTES = 2**16
_LONG = 2**16  # of a longer line, which holds statistics of layers, only the beginning is read
_BEGINNING = re.compile(rb'\{"kind": "(\w+)", "step": (\d+)\b')


def last_records(metrics: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, the last first, as far as 16 MiB reach; of long ones `kind` and `step` alone.

    A last line that a kill cut short is left out.

    Raises:
        ValueError: a line is damaged.
        OSError: the file cannot be read.
    """
    with open_file(metrics, inside=metrics.parent) as file:
        lines = _last_lines(file)
        unfinished = _record(metrics, next(lines, b""), is_cut=True)
        if unfinished is not None:
            yield unfinished
        for line in lines:
            found = _BEGINNING.match(line) if len(line) > _LONG else None
            if found is not None:
                yield {"kind": found[1].decode(), "step": int(found[2])}
            elif (record := _record(metrics, line)) is not None:
                yield record


def last_step(metrics: Path) -> int:
    """The step of the last record that has one, which is the largest; 0 where there is none.

    Raises:
        ValueError, OSError: as `last_records`.
    """
    return next((record["step"] for record in last_records(metrics) if type(record.get("step")) is int), 0)


def first_header(metrics: Path) -> dict[str, Any]:
    """The header that a run's records begin with; empty where they begin with none.

    Raises:
        ValueError: the first line is damaged.
        OSError: the file cannot be read.
    """
    with open_file(metrics, inside=metrics.parent) as file:
        line = file.readline(_HEAD_BYTES)
    record = _record(metrics, line, is_cut=not line.endswith(b"\n"))
    return record if record is not None and record.get("kind") == "header" else {}


def _last_lines(file: BinaryIO) -> Iterator[bytes]:
    """What follows the last line's end, then the lines, the last first."""
    place = file.seek(0, 2)
    end, block, rest = place, 2**14, b""
    while place > 0 and end - place < _MOST_BYTES:
        block = min(2 * block, 2**20)
        start = max(0, place - block)
        file.seek(start)
        first, *lines = (file.read(place - start) + rest).split(b"\n")
        yield from reversed(lines)
        place, rest = start, first
    if place == 0:
        yield rest


def _record(metrics: Path, line: bytes, *, is_cut: bool = False) -> dict[str, Any] | None:
    """None for an empty line, and for one that may be cut and is."""
    if not line.strip():
        return None
    try:
        record = parse_json(line)
        if isinstance(record, dict):
            return decode(record)
    except ValueError:  # neither JSON nor UTF-8, or nested thousandfold
        pass
    if is_cut:
        return None
    raise ValueError(f"{metrics}: a line is not a JSON record")
