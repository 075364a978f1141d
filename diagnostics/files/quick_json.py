"""JSON in a third of the time where orjson is installed; without it, or where it gives up, nothing is different."""

from typing import Any

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]


class GaveUpError(Exception):
    """There is no orjson, or it does not take this text: `json` does, or has the better error."""


def loads(raw: bytes) -> Any:
    """What JSON text in UTF-8 says; an integer beyond 64 bits comes as a float.

    Raises:
        GaveUpError: `json` is to be asked: of half a surrogate pair, a bare NaN, a number beyond float64, an error.
    """
    if orjson is None:
        raise GaveUpError
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise GaveUpError from None
