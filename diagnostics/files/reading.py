"""Reading with bounds: on bytes, on a line, on how deep JSON is nested."""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from diagnostics.files import quick_json
from diagnostics.files.opening import RefusedFileError, open_file

MOST_BYTES = 2**26
"""Bytes of a file that is read whole, unless more is asked for."""
MOST_DEPTH = 64
"""Of JSON: lists and objects in one another."""
LONGEST_LINE = 2**26
"""Bytes of a line; a record of a thousand layers takes less than 2**20."""

_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
# A text without an end takes all the rest, and nothing is tried twice: the time grows with the length alone.
_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_PathLike = str | os.PathLike[str]


class LongLineError(ValueError):
    """A line beyond the bound. The text names file and line."""


def read_bytes(path: _PathLike, *, limit: int = MOST_BYTES, inside: _PathLike | None = None) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    Args:
        inside: as in `open_file`.

    Raises:
        OSError: it is no such file, is larger, or cannot be read.
    """
    with open_file(path, inside=inside) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise RefusedFileError(path, _too_large(os.fstat(file.fileno()).st_size, limit))
        content = file.read(limit + 1)
    if len(content) > limit:  # it grew, or tells no size
        raise RefusedFileError(path, _too_large(len(content), limit))
    return content


def read_text(path: _PathLike, *, limit: int = MOST_BYTES, inside: _PathLike | None = None) -> str:
    """As `read_bytes`; text in UTF-8, a byte order mark left out.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is not UTF-8 (UnicodeDecodeError).
    """
    return read_bytes(path, limit=limit, inside=inside).removeprefix(codecs.BOM_UTF8).decode("utf-8")


def read_json(
    path: _PathLike, *, limit: int = MOST_BYTES, depth: int = MOST_DEPTH, inside: _PathLike | None = None
) -> Any:
    """What a JSON file in UTF-8 holds.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is not UTF-8, not JSON, or nested deeper than `depth`; one line.
    """
    return parse_json(read_bytes(path, limit=limit, inside=inside), depth=depth)


def parse_json(
    content: bytes | str,
    *,
    depth: int = MOST_DEPTH,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    is_exact: bool = True,
) -> Any:
    """What JSON text says.

    Args:
        is_exact: False where an integer beyond 64 bits may come as a float: a third of the time, with orjson.

    Raises:
        ValueError: it is not UTF-8, not JSON, has a number of thousands of digits, or is nested deeper than `depth`.
    """
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    if _may_be_deeper(raw, depth) and _is_deeper(raw, depth):
        raise ValueError(f"nested deeper than {depth} lists and objects")
    if not is_exact and object_pairs_hook is None:
        with suppress(quick_json.GaveUpError):
            return quick_json.loads(raw)
    try:
        text = content if isinstance(content, str) else content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_lines(file: BinaryIO, name: str, *, longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """The lines that follow in an open file, with their ends; the last may have none.

    Args:
        name: of the file, for the error.

    Raises:
        LongLineError: a line of `longest` bytes or more.
    """
    number = 0
    while line := file.readline(longest):
        number += 1
        if len(line) == longest:
            raise LongLineError(f"{name}:{number}: a line of {longest / 2**20:g} MiB or more; remove it to go on")
        yield line


def sha256_of(path: _PathLike, *, inside: _PathLike | None = None) -> str:
    """SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path, inside=inside) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_large(size: int, limit: int) -> str:
    return f"has {size / 2**20:,.1f} MiB, at most {limit / 2**20:,g} are read"


def _may_be_deeper(raw: bytes, depth: int) -> bool:
    """False where brackets alone show that it is not; brackets inside texts may have it say True."""
    if raw.count(b"[") + raw.count(b"{") <= depth:
        return False
    brackets = raw.translate(None, _NOT_BRACKETS)
    for _ in range(depth):
        shorter = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if not shorter:
            return False
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return True


def _is_deeper(raw: bytes, depth: int) -> bool:
    """Whether brackets outside of texts are nested deeper."""
    open_now = 0
    for found in _TEXT_OR_BRACKET.finditer(raw):
        if found[0] in (b"[", b"{"):
            open_now += 1
            if open_now > depth:
                return True
        elif found[0] in (b"]", b"}"):
            open_now -= 1
    return False
