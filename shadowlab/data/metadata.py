"""JSON metadata, read strictly: every fault is listed, none is repaired."""

import difflib
import json
from collections.abc import Sequence

from diagnostics.files import parse_json
from shadowlab.errors import UserError


class JsonObject(list[tuple[str, object]]):
    """A JSON object as its pairs, so that a key written twice is seen."""


def parse_object(data: bytes, where: str) -> JsonObject:
    """The pairs of a JSON object in UTF-8; nested objects are JsonObject too.

    Raises:
        UserError: not UTF-8, not JSON, or not an object.
    """
    try:
        value = parse_json(data, object_pairs_hook=JsonObject)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON: {error.msg} at line {error.lineno} column {error.colno}; correct the file"
        ) from error
    except ValueError as error:  # numbers of thousands of digits, thousands of nested lists
        raise UserError(f"{where}: not readable as JSON: {error}; correct the file") from error
    if not isinstance(value, JsonObject):
        raise UserError(f"{where}: holds {describe(value)}, expected a JSON object {{...}}")
    return value


def describe(value: object) -> str:
    """A JSON value in words for a message."""
    if isinstance(value, JsonObject):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"the number {value}"


def read_keys(pairs: JsonObject, valid: Sequence[str], where: str, problems: list[str]) -> dict[str, object]:
    """The known keys, first value each. A key written twice or not in `valid` is added to `problems`."""
    values: dict[str, object] = {}
    for key, value in pairs:
        if key not in valid:
            nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)[0]
            problems.append(f"{where}: unknown key {key!r}; the nearest valid key is {nearest!r}")
        elif key in values:
            problems.append(f"{where}: key {key!r} is written twice; keep one")
        else:
            values[key] = value
    return values


def read_number(values: dict[str, object], key: str, where: str, problems: list[str]) -> int | float | None:
    """The number under `key`, or None with the reason in `problems`."""
    if key not in values:
        problems.append(f"{where}: key {key!r} is missing; add it as a number")
        return None
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(f"{where}: {key} is {describe(value)}; write a number")
        return None
    return value


def read_text(values: dict[str, object], key: str, where: str, problems: list[str]) -> str | None:
    """The non-empty text under an optional `key`; None where it is absent or, with a problem, something else."""
    if key not in values:
        return None
    value = values[key]
    if isinstance(value, str) and value:
        return value
    problems.append(f"{where}: {key} is {describe(value)}; write a non-empty text")
    return None
