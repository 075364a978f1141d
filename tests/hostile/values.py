"""Values that a file should not hold, and all places of a document where they can be put."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

ESCAPES = (
    "\x1b]0;owned\x07\x1b[31m\r\n<script>alert(1)</script><img src=x onerror=alert(1)>[red][link=file:///]\u202e\x9b2J"
)

WRONG: dict[str, Any] = {
    "null": None,
    "list": [],
    "object": {},
    "text": "text",
    "escapes": ESCAPES,
    "long text": "x" * 100_000,
    "minus one": -1,
    "huge whole number": 10**400,
    "infinity": float("inf"),
    "nan": float("nan"),
    "true": True,
    "nested": [[[{"a": [[]]}]]],
    "path": "../../../../../../etc/passwd",
    "dotted name": "os.system",
    "numbers": [1, "2", None],
}

Path_ = tuple[str | int, ...]


def places(document: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Of every value in a JSON document, from the outside in; of a list, the first and the last."""
    yield path
    items: list[tuple[str | int, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
        items = items[:1] + items[1:][-1:]
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(document: Any, path: Path_, value: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return value
    whole = copy.deepcopy(document)
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return whole


def without(document: Any, path: Path_) -> Any:
    """A copy without what is in one place."""
    whole = copy.deepcopy(document)
    node = whole
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return whole


def in_every_text(document: Any, change: Callable[[str], str]) -> Any:
    """A copy with every text changed, keys too."""
    if isinstance(document, dict):
        return {change(key): in_every_text(value, change) for key, value in document.items()}
    if isinstance(document, list):
        return [in_every_text(value, change) for value in document]
    return change(document) if isinstance(document, str) else document
