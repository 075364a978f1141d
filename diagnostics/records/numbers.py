"""Numbers of records as they are put into columns; most of the time of reading a long run is spent here."""

import struct
from array import array
from collections.abc import Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

ABSENT_BITS = 0x7FF85AD000000001
"""Of a float64 that stands for a number that is not there: a NaN that no measurement gives."""
ABSENT: float = struct.unpack("<d", struct.pack("<Q", ABSENT_BITS))[0]
NO_NAMES: dict[str, Any] = {}


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, and no bool."""
    kind = type(value)  # asked first: most are one of these, and `isinstance` takes longer
    return kind is float or kind is int or (isinstance(value, int | float) and kind is not bool)


def mappings(found: list[Any]) -> list[Any]:
    """The same; an empty one in the place of what is none."""
    if set(map(type, found)) <= {dict}:
        return found
    return [one if isinstance(one, Mapping) else NO_NAMES for one in found]


def extend_all(columns: "list[array[float]]", keys: tuple[str, ...], found: list[Any]) -> bool:
    """Add the numbers of these keys where each of `found` has all of them, or is empty: half of the time of a cell
    after the other. Returns whether that was so; nothing is added where it was not."""
    take, nothing = itemgetter(*keys), (ABSENT,) * len(keys)
    try:
        rows = array("d", list(chain.from_iterable([take(one) if one else nothing for one in found])))
    except (KeyError, TypeError, OverflowError):
        return False
    for place, column in enumerate(columns):
        column.extend(rows[place :: len(keys)])
    return True


def extend(column: "array[float]", values: list[Any]) -> None:
    """Add these numbers, `ABSENT` in the place of what is none."""
    before = len(column)
    try:
        column.extend(values)
    except (TypeError, OverflowError):  # in records of another writer: text, null, a huge integer
        del column[before:]
        for value in values:
            try:
                column.append(value)
            except (TypeError, OverflowError):
                column.append(ABSENT)
