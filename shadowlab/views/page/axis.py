"""An axis: from values to pixels, with ticks a person can read."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

_LOG_SPAN = 30.0  # a curve whose largest value is so many times its smallest is drawn on a log scale
_SMALLEST, _LARGEST = 5e-324, sys.float_info.max
_LEAST_MARGIN = 1e-290  # below this the arithmetic of ticks would lose its digits


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels."""

    low: float
    """Finite; positive where the axis is logarithmic."""
    high: float
    """Finite, above `low`."""
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""
    is_log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> "Axis":
        """Around the finite ones of `values`, widened a little; 0 to 1 where there is none."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if low > 0 and math.log(high) - math.log(low) > math.log(_LOG_SPAN):
            margin = (math.log(high) - math.log(low)) * 0.04
            low, high = math.exp(math.log(low) - margin), math.exp(min(math.log(high) + margin, math.log(_LARGEST)))
            return cls(max(low, _SMALLEST), high, start, end, is_log=True)
        span = high / 2 - low / 2  # halves: a difference may overflow
        margin = max(span * 0.1 if span else abs(high) * 0.1 or 1.0, _LEAST_MARGIN)
        starts_at_zero = bool(finite) and 0 <= low < margin
        return cls(0.0 if starts_at_zero else max(low - margin, -_LARGEST), min(high + margin, _LARGEST), start, end)

    @classmethod
    def of_steps(cls, first: int, last: int, start: float, end: float) -> "Axis":
        return cls(first, last, start, end) if last > first else cls(first - 0.5, last + 0.5, start, end)

    def place(self, value: float) -> float:
        """Pixel of a finite value."""
        if self.is_log:
            low, high = math.log(self.low), math.log(self.high)
            share = (math.log(value) - low) / (high - low)
        else:
            half = self.high / 2 - self.low / 2
            share = (value / 2 - self.low / 2) / half
        return self.start + share * (self.end - self.start)

    def ticks(self, *, most: int = 6, whole: bool = False) -> list[tuple[float, str]]:
        """(pixel, label).

        Args:
            most: about how many.
            whole: at whole numbers alone.
        """
        values = self._decades(most) if self.is_log else self._round_values(most, whole)
        return [(self.place(value), label(value)) for value in values]

    def _round_values(self, most: int, whole: bool) -> list[float]:
        wanted = (self.high / most - self.low / most) or 1.0
        size = 10.0 ** math.floor(math.log10(wanted))
        step = next((size * factor for factor in (1, 2, 5) if size * factor >= wanted), size * 10)
        if whole:
            step = max(step, 1.0)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, first + most + 2) if self.low <= i * step <= self.high]

    def _decades(self, most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1,)):
            values = [f * 10.0**e for e in range(max(first, -323), min(last, 308) + 1) for f in factors]
            values = [v for v in values if self.low <= v <= self.high]
            if len(values) <= most:
                return values
        return values[:: math.ceil(len(values) / most)]


def label(value: float) -> str:
    """Short: 0.001, 250, 20k, 1e-5."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if not exponent:
            mantissa, _, exponent = f"{value:.2e}".partition("e")
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"
