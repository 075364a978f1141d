"""Several ways to do a step, timed in turns: a load that drifts or comes in bursts cancels out.

Every way runs once a round, in an order that rotates; a row's figure is the median of its per-round ratios. Each timed
call follows an untimed one of its kind: a watch that finds optimizer states written by others looks at them all,
which in training happens once.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One variant; its figures are None where it could not run."""

    name: str
    ratio: float | None = None
    """Median over the rounds of its time to the base's."""
    low: float | None = None
    """Lower quartile of that ratio."""
    high: float | None = None
    """Upper quartile."""
    seconds: float | None = None
    """Median step."""
    cpu_ratio: float | None = None
    """The ratio of processor time over all threads, which other processes disturb less; None on an accelerator."""
    note: str = ""
    """Also why it could not run."""


class Rounds:
    """Seconds of each variant, round by round.

    Args:
        around: context managers that stand around both calls of a variant.
        on_round: receives a line of text after each round.
    """

    def __init__(
        self,
        calls: Mapping[str, Step],
        num_rounds: int,
        device: torch.device,
        *,
        around: Mapping[str, Callable[[], AbstractContextManager[Any]]] | None = None,
        on_round: Callable[[str], None] = lambda line: None,
    ) -> None:
        names = list(calls)
        base = names[0]
        self.wall: dict[str, list[float]] = {name: [] for name in names}
        self.cpu: dict[str, list[float]] = {name: [] for name in names}
        self._is_cpu = device.type == "cpu"
        for number in range(num_rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                with (around or {}).get(name, nullcontext)():
                    calls[name]()
                    wall, cpu = timed(calls[name], device)
                self.wall[name].append(wall)
                self.cpu[name].append(cpu)
            ratios = ", ".join(f"{name} {self.wall[name][-1] / self.wall[base][-1]:.3f}" for name in names[1:])
            on_round(f"round {number + 1}/{num_rounds}: {base} {self.wall[base][-1]:.2f} s; {ratios}")

    def mix(self, name: str, shares: Mapping[str, float]) -> None:
        """Add a variant whose steps are of several kinds; the shares add up to 1."""
        for times in (self.wall, self.cpu):
            rounds = zip(*(times[kind] for kind in shares), strict=True)
            times[name] = [sum(s * share for s, share in zip(one, shares.values(), strict=True)) for one in rounds]

    def row(self, name: str, base: str, note: str = "") -> Row:
        ratios = _ratios(self.wall, name, base)
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        cpu = statistics.median(_ratios(self.cpu, name, base)) if self._is_cpu else None
        return Row(name, statistics.median(ratios), low, high, statistics.median(self.wall[name]), cpu, note)


def timed(step: Step, device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def row_lines(rows: list[Row]) -> list[str]:
    """A table of plain text."""
    width = max([36, *(len(row.name) for row in rows)])
    lines = [f"{'':<{width}} {'ratio':>7}  {'quartiles':>15}  {'cpu time':>8}  {'seconds':>8}"]
    for row in rows:
        if row.ratio is None:
            lines.append(f"{row.name:<{width}} {row.note}")
            continue
        cpu = "" if row.cpu_ratio is None else f"{row.cpu_ratio:.3f}"
        quartiles = f"{row.low:.3f} - {row.high:.3f}"
        figures = f"{row.name:<{width}} {row.ratio:>7.3f}  {quartiles:>15}  {cpu:>8}  {row.seconds:>8.3f}"
        lines.append(f"{figures}  {row.note}".rstrip())
    return lines


def _ratios(times: Mapping[str, list[float]], name: str, base: str) -> list[float]:
    return [seconds / other for seconds, other in zip(times[name], times[base], strict=True)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
