"""What trackers have kept on this machine, read back without the code under test."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")
_START = 7  # W&B's own mark before the first block's records
_FULL, _FIRST, _MIDDLE, _LAST = range(1, 5)

Curves = dict[str, list[tuple[int, float]]]
"""Name -> (step, value), in the order in which they were logged."""


def wandb_files(run: Path) -> list[Path]:
    """One a session, the oldest first."""
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def wandb_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `.wandb` file, as W&B's server would be sent them: LevelDB's log of protobuf records."""
    for record in _whole(file):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, name = [item.key] if item.key else item.nested_key
                place = row
                for one in outer:
                    place = place.setdefault(one, {})
                place[name] = json.loads(item.value_json)
            yield row


def _whole(file: Path) -> list[Any]:
    """All records, once W&B's own process has written the last one: `finish` does not wait for it."""
    from wandb.proto.wandb_internal_pb2 import Record

    limit = time.monotonic() + 60
    while True:
        records = [Record.FromString(content) for content in _log_records(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < limit, f"{file} was never finished"
        time.sleep(0.05)


def _log_records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    position, parts = _START, []
    while position + _HEADER.size <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(content, position)
        position += _HEADER.size
        parts.append(content[position : position + length])
        position += length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def wandb_curves(file: Path) -> Curves:
    """Of the numbers; those that are not finite are words in W&B."""
    found: Curves = {}
    for row in wandb_rows(file):
        for name, value in row.items():
            if name not in ("step", "_step", "_runtime", "_timestamp") and not isinstance(value, dict):
                found.setdefault(name, []).append((row["step"], float(value)))
    return found


def mlflow_curves(folder: Path) -> list[Curves]:
    """One a session, the oldest first, through MLflow's own client."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    sessions = [
        one for experiment in client.search_experiments() for one in client.search_runs([experiment.experiment_id])
    ]
    sessions.sort(key=lambda one: one.info.start_time)
    return [
        {
            name: [(metric.step, metric.value) for metric in client.get_metric_history(session.info.run_id, name)]
            for name in session.data.metrics
        }
        for session in sessions
    ]
