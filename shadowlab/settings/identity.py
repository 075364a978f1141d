"""What names a model configuration: the values that enter its hash, and the contents of local weights."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from diagnostics.files import reason_of, sha256_of
from shadowlab.errors import UserError
from shadowlab.settings.keys import Section, leaves, marks_of

START_FILE = "start.json"
"""Of a folder of weights that a run keeps of the one that it started from: it has them by content, wherever it lies."""
TASK_MODEL = "model"
"""Of `task_options`, the part whose options decide the model; all others decide nothing."""


def hash_of(config: Section, places: Iterable[str]) -> str:
    """12 hex digits of the keys of `config` that decide the model, and of the contents of local folders.

    Args:
        places: what names weights; one that is a local folder enters by content.

    Raises:
        UserError: a file of such a folder cannot be read.
    """
    proven = {"files": [_digest(place) for place in places], **_proven_values(config)}
    return hashlib.sha256(json.dumps(proven, sort_keys=True).encode()).hexdigest()[:12]


def _proven_values(config: Section) -> dict[str, Any]:
    """The keys that decide the model: those of the section `model` in one mapping, the others by their last name;
    and the task's own, as they are given.

    So it was written before the keys were marked, and the hashes in run folders stay good.
    """
    proven: dict[str, Any] = {"model": {}}
    given, default = config.model_dump(mode="json"), type(config)().model_dump(mode="json")
    for name, field in leaves(type(config)):
        marks = marks_of(field)
        if marks is None or marks.decides != "model":
            continue
        *sections, last = name.split(".")
        value = reduce(getitem, sections, given)[last]
        if name == "model.weights" and (Path(value).expanduser() / START_FILE).is_file():
            value = START_FILE
        if marks.hashed_if_changed and value == reduce(getitem, sections, default)[last]:
            continue
        (proven["model"] if sections == ["model"] else proven)[last] = value
    if options := given.get("task_options", {}).get(TASK_MODEL):  # absent from hashes that are older
        proven["task_options"] = options
    return proven


def _digest(source: str) -> str:
    """Names and contents of the weights and configurations in a local folder. 12 hex digits."""
    root = Path(source).expanduser()
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else []:
        if file.suffix not in (".json", ".safetensors") or file.is_dir():
            continue
        try:
            status = file.stat()
            content = _file_digest(file, status.st_mtime_ns, status.st_size)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({reason_of(error)}); repair the file or take it out") from None
        digest.update(f"{file.relative_to(root)} {content} ".encode())
    return digest.hexdigest()[:12]


@cache
def _file_digest(file: Path, mtime_ns: int, size: int) -> str:
    """SHA-256 of the whole file, read once in a process for as long as its time and size stay."""
    return sha256_of(file)
