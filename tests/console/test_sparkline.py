"""Curves in a line of text: closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.console.sparklines import sparkline

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([1.0], 0, ""),
        ([1.0], 5, "▄"),  # no course, neither low nor high
        ([3.0, 3.0, 3.0], 5, "▄▄▄"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7.0, 0.0], 8, "█▁"),
        ([0, 0, 1, 1], 2, "▁█"),
        ([0, 2, 7, 7], 2, "▁█"),  # means 1 and 7
        ([0, 8, 0, 8, 8, 8], 3, "▁▁█"),  # means 4, 4, 8
        ([1.0, NAN, 2.0], 5, "▁N█"),
        ([1.0, INF, -INF, 2.0], 5, "▁∞∞█"),
        ([0.0] * 50 + [NAN, INF] + [1.0] * 50, 3, "▁N█"),  # not averaged away
        ([NAN] * 3, 2, "NN"),
        ([-1.7e308, 0.0, 1.7e308], 3, "▁▅█"),  # whose difference is more than a float can hold
    ],
)
def test_closed_forms(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_terminals_without_unicode() -> None:
    line = sparkline([0.0, 0.5, NAN, INF, 1.0], 9, ascii_only=True)
    assert line == "_=NI#"
    assert line.isascii()


@given(st.lists(st.floats(), max_size=50), st.integers(0, 20))
def test_any_numbers_fit(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(width, len(values))
