"""Text from files as a terminal may have it: without what would move its cursor, colour it or turn its lines round."""

import re

# All control characters but line feed and tab, marks that reorder text, and halves of surrogate pairs.
_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_text(text: str) -> str:
    """`text` with characters that act on a terminal written as escapes, such as `\\x1b`; lines and tabs stay."""
    return _ACTS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
