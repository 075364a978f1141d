"""Columns and what is said about them as the bytes of one file, with a checksum; nothing in it becomes code."""

import hashlib
import json
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diagnostics.files import parse_json

Arrays = dict[str, np.ndarray]

_ABOUT, _DIGEST = "about", "sha256"


def joined_columns(arrays: Arrays, about: dict[str, Any]) -> bytes:
    """A safetensors file. about: of plain values, as JSON has them."""
    arrays = arrays | {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
    return save(arrays | {_DIGEST: _digest(arrays)})


def split_columns(content: bytes) -> tuple[Arrays, dict[str, Any]]:
    """The columns, and what is said about them. Raises ValueError where they are not what was written."""
    try:
        arrays = load(content)
        if not np.array_equal(arrays.pop(_DIGEST), _digest(arrays)):
            raise ValueError("not what was written")
        about = parse_json(arrays.pop(_ABOUT).tobytes())
    except (SafetensorError, LookupError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(about, dict):
        raise ValueError("nothing is said about it")
    return arrays, about


def _digest(arrays: Arrays) -> np.ndarray:
    """(32,) uint8: SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, column in sorted(arrays.items()):
        digest.update(f"{name} {column.dtype.str} {column.shape} ".encode())
        digest.update(np.ascontiguousarray(column).data)
    return np.frombuffer(digest.digest(), np.uint8)
