"""The best result so far, where the loop keeps it in a variable of its own: whether it keeps the better one."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from diagnostics.contracts.directions import direction_of
from diagnostics.contracts.family import Family, Reports
from diagnostics.contracts.scene import Scene, Step
from diagnostics.patching import own_frames, variables_of

_IS_BEST = re.compile(r"(^|[^a-z])best([^a-z]|$)")
_MOST_ITEMS = 32
_LARGE = 1e3  # what a best result may begin with, as may 0 and 1


@dataclass
class _Pair:
    metric: str
    higher_is_better: bool
    began_wrong: bool
    """The first result replaced a value that is worse in the other direction alone."""


class Best(Family):
    """Numbers among the variables of the function that runs the steps; no tensor is read."""

    def __init__(self, scene: Scene, reports: Reports) -> None:
        super().__init__(scene, reports)
        self._code: CodeType | None = None
        self._before: dict[str, float] = {}
        self._pairs: dict[str, _Pair] = {}
        self._moved: set[str] = set()  # bests that have changed

    def begin(self, step: Step) -> None:
        frame = next(own_frames(), None)
        if frame is None:
            return
        now = dict(_numbers_of(variables_of(frame)))
        before, self._before = self._before, now
        if frame.f_code is not self._code:
            self._code, self._pairs, self._moved = frame.f_code, {}, set()
            return
        kept = [name for name in now if _IS_BEST.search(name.lower())]
        metrics = {name: one for name in now if name not in kept and (one := direction_of(name)) is not None}
        changed = [(name, old) for name in kept if (old := before.get(name)) is not None and old != now[name]]
        self._moved |= {name for name, _ in changed}
        if changed:
            self._judge_changes(step, changed, now, metrics)
            return
        self._judge_beginnings(step, kept, before, now, metrics)
        for name, pair in self._pairs.items():
            value, best = now.get(pair.metric), now.get(name)
            if value is None or best is None or value == before.get(pair.metric):
                continue
            if pair.began_wrong and value != best and (value > best) == pair.higher_is_better:
                evidence = f"{value:.6g} is not kept in {name} after {best:.6g}, though it is better"
                self.broken("metric-direction", step, evidence, subject=pair.metric)

    def _judge_beginnings(
        self, step: Step, kept: list[str], before: dict[str, float], now: dict[str, float], metrics: dict[str, bool]
    ) -> None:
        """`best_loss = 0.0`, which no loss is below."""
        for name in kept:
            own = _IS_BEST.sub("_", name.lower()).strip("_ ")
            for metric, higher in metrics.items():
                is_its = own in metric.lower() or (not own and len(metrics) == 1)
                is_new = metric not in before or now[metric] != before[metric]
                if not is_its or not is_new or name in self._moved:
                    continue
                is_lost = now[name] == 0 < now[metric] or now[name] == -math.inf
                if higher:
                    is_lost = now[name] == 1 > now[metric] > 0 or now[name] == math.inf
                if is_lost:
                    evidence = f"{name} begins at {now[name]:g}, and {now[metric]:.6g} is not kept: nothing is better"
                    advice = f"begin at {'-' if higher else ''}inf"
                    self.broken("metric-direction", step, evidence, subject=metric, severity="warning", advice=advice)

    def _judge_changes(
        self, step: Step, changed: list[tuple[str, float]], now: dict[str, float], metrics: dict[str, bool]
    ) -> None:
        """One result is chosen by, and others may be noted with it: where one is right, or is of a metric that is
        not at hand any more, nothing is said."""
        found = []
        for name, old in changed:
            same = {metric: higher for metric, higher in metrics.items() if now[metric] == now[name]}
            if len(set(same.values())) == 1:
                metric, higher = next(iter(same.items()))
                found.append((name, old, metric, higher, (now[name] < old) == higher))
        is_any_right = any(not is_wrong for *_, is_wrong in found) or len(found) < len(changed)
        for name, old, metric, higher, is_wrong in found:
            if is_any_right:
                self._pairs.pop(name, None)
                continue
            is_first = name not in self._pairs
            is_placeholder = abs(old) >= _LARGE or old in (-1.0, 0.0, 1.0) or not math.isfinite(old)
            self._pairs[name] = _Pair(metric, higher, is_wrong)
            if is_wrong and not (is_first and is_placeholder):
                evidence = f"{now[name]:.6g} is kept in {name} after {old:.6g}, which is better"
                self.broken("metric-direction", step, evidence, subject=metric)


def _numbers_of(variables: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of floats, those in dicts too."""
    for name, value in variables.items():
        if isinstance(value, float):
            yield name, value
        elif type(value) is dict and len(value) <= _MOST_ITEMS:
            yield from ((key, item) for key, item in value.items() if isinstance(key, str) and isinstance(item, float))
