"""An axis: from values to pixels, with ticks a person can read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_LOG_SPAN = 30.0  # a curve whose largest value is so many times its smallest is drawn on a log scale


@dataclass(frozen=True)
class Axis:
    """low < high, both finite; of a log axis both are positive. start, end: pixels of low and high."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, may_be_log: bool = True) -> "Axis":
        """Around the finite ones of `values`, widened a little; 0 to 1 where there is none."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if may_be_log and low > 0 and high / low > _LOG_SPAN:
            margin = (high / low) ** 0.04
            return cls(max(low / margin, 5e-324), min(high * margin, 1.7e308), start, end, is_log=True)
        margin = (high / 2 - low / 2) * 0.1 or abs(high) * 0.1 or 1.0  # halves: a difference may overflow
        low, high = max(low - margin, -1.7e308), min(high + margin, 1.7e308)
        return cls(0.0 if finite and 0 <= min(finite) < margin else low, high, start, end)

    @classmethod
    def of_steps(cls, first: int, last: int, start: float, end: float) -> "Axis":
        return cls(first, last, start, end) if last > first else cls(first - 1, last + 1, start, end)

    def place(self, value: float) -> float:
        """Pixel of a finite value."""
        if self.is_log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            half = self.high / 2 - self.low / 2
            share = (value / 2 - self.low / 2) / half
        return self.start + share * (self.end - self.start)

    def ticks(self, *, most: int = 6, whole: bool = False) -> list[tuple[float, str]]:
        """(pixel, label); whole: at whole numbers alone."""
        values = self._decades(most) if self.is_log else self._round_values(most, whole)
        return [(self.place(value), label(value)) for value in values]

    def _round_values(self, most: int, whole: bool) -> list[float]:
        wanted = (self.high / most - self.low / most) or 1.0
        size = 10.0 ** math.floor(math.log10(wanted))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= wanted)
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
