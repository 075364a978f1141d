"""Text for people: counts in words; text from files without what would act on a terminal (cursor, colour, order)."""

import re

# All control characters but line feed and tab, marks that reorder text, and halves of surrogate pairs.
_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_text(text: str) -> str:
    """`text` with characters that act on a terminal written as escapes, such as `\\x1b`; lines and tabs stay."""
    return _ACTS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`, `1,200 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
