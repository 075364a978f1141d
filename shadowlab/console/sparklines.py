"""A curve in one line of text."""

import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """One character a value, from the lowest to the highest of them; more than `width` values are averaged in buckets.

    A bucket that holds NaN is `N`, one that holds an infinity `∞` (`I` with `ascii_only`): what went wrong must not
    be averaged away. Where all are equal the line runs at half height. Empty for no values or no width.
    """
    if width < 1 or not values:
        return ""
    levels, infinity = (_ASCII, "I") if ascii_only else (_BLOCKS, "∞")
    buckets = _bucket_means(values, min(width, len(values)))
    finite = [value for value in buckets if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def character(value: float) -> str:
        if math.isnan(value):
            return "N"
        if math.isinf(value):
            return infinity
        if high == low:
            return levels[len(levels) // 2 - 1]
        share = (value / 2 - low / 2) / (high / 2 - low / 2)  # halves: high - low may exceed the largest float
        return levels[min(len(levels) - 1, int(share * len(levels)))]

    return "".join(map(character, buckets))


def _bucket_means(values: Sequence[float], count: int) -> list[float]:
    """Means of `count` runs of neighbours whose lengths differ by at most 1; NaN wins, then an infinity."""
    means = []
    for i in range(count):
        bucket = values[i * len(values) // count : (i + 1) * len(values) // count]
        bad = [value for value in bucket if not math.isfinite(value)]
        if any(math.isnan(value) for value in bad):
            means.append(math.nan)
        elif bad:
            means.append(bad[0])
        else:
            means.append(sum(value / len(bucket) for value in bucket))
    return means
