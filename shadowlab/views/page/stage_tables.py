"""The results in stages.json as tables: what the model is judged by in words, then everything else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shadowlab.charts import COMMON, Chart, Metric
from shadowlab.views.charts import is_number
from shadowlab.views.page.wording import in_words, number, plain

_OF_MODELS = ("loss", "r2")  # of latents, which a baseline has none of
_LOSS_AT, _ANSWER = "loss_t", "response_"
_HEADINGS = {"mend": "what to do", "seen": "saw", "low": "lowest", "high": "highest"}


@dataclass(frozen=True)
class Vocabulary:
    """What the names of a run's numbers mean."""

    metrics: Mapping[str, Metric] = field(default_factory=lambda: {metric.name: metric for metric in COMMON})
    labels: Mapping[str, str] = field(default_factory=dict)
    """Key of a record -> its label in a chart."""

    @classmethod
    def of(cls, header: Mapping[str, Any], charts: Sequence[Chart] | None) -> "Vocabulary":
        """header: of the run's records; what it says of metrics in a wrong form is left out."""
        known = {metric.name: metric for metric in COMMON}
        own = header.get("metrics")
        for content in own if isinstance(own, list) else ():
            try:
                metric = Metric.from_json(content)
            except ValueError:
                continue
            known.setdefault(metric.name, metric)
        labels = {curve.key: curve.label for chart in charts or () for curve in chart.curves}
        return cls(known, labels)

    def baselines(self, keys: Mapping[str, Any]) -> list[str]:
        """Prefixes of those that were judged next to the model, in order."""
        found: dict[str, None] = {}
        for key in keys:
            ends = [name for name in self.metrics if key.endswith(f"_{name}") and name not in _OF_MODELS]
            metric = max(ends, key=len, default=None)  # `black_si_rmse` is no `rmse` of `black_si`
            if metric is not None and metric in keys and key not in self.metrics:
                found[key.removesuffix(f"_{metric}")] = None
        return list(found)

    def baseline_text(self, prefix: str) -> str:
        """`all black`, where a chart calls it so."""
        labels = (self.labels.get(f"{prefix}_{name}") for name in self.metrics)
        return next((label for label in labels if label), prefix.replace("_", " "))


@dataclass(frozen=True)
class Score:
    """One metric of the model, and of what it is compared with."""

    name: str
    higher_is_better: bool
    values: tuple[str, ...]
    """The model's, then those of the baselines; empty where it was not measured."""
    asked: str
    """The bound of the stage's criterion."""
    best: int | None
    """Place of the best of the values; None where they are equal, or the model stands alone."""
    missed: bool
    """Whether the model does not keep the bound."""

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class ListTable:
    """A list of objects in a summary, such as the checks of check-forward."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    failed: frozenset[int] = frozenset()
    """Places of the rows that say `passed: false`."""


@dataclass(frozen=True)
class StageTable:
    """One stage."""

    name: str
    passed: bool
    finished: str
    version: str
    scores: tuple[Score, ...]
    """What the model is judged by."""
    judged: tuple[str, ...]
    """Headings of the scores' values: the model, and the baselines."""
    figures: tuple[tuple[str, str], ...]
    """(name, value) of everything else."""
    lists: tuple[ListTable, ...]
    error: str
    """What it said when it failed."""

    @property
    def asks(self) -> bool:
        """Whether any of the scores has a bound."""
        return any(score.asked for score in self.scores)

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any], words: Vocabulary | None = None) -> "StageTable":
        given = entry.get("summary")
        summary: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        words = words or Vocabulary()
        baselines = words.baselines(summary)
        criterion = summary.get("criterion")
        asked: Mapping[str, Any] = criterion if isinstance(criterion, Mapping) else {}
        scores = [
            _score(metric, summary, baselines, asked.get(metric.name))
            for metric in words.metrics.values()
            if is_number(summary.get(metric.name))
        ]
        shown = {m for m in words.metrics if is_number(summary.get(m))}
        hidden = shown | {f"{prefix}_{metric}" for prefix in baselines for metric in shown}
        figures, lists = _others({key: value for key, value in summary.items() if key not in hidden}, shown)
        finished, version = str(entry.get("finished", "")), str(entry.get("shadowlab_version", ""))
        return cls(
            name,
            entry.get("passed") is True,
            finished,
            version,
            tuple(scores),
            ("model", *map(words.baseline_text, baselines)),
            tuple(figures),
            tuple(lists),
            str(summary.get("error", "")),
        )


def _score(metric: Metric, summary: Mapping[str, Any], baselines: Sequence[str], bound: Any) -> Score:
    """The row of a metric that the summary has."""
    found = [summary.get(metric.name), *(summary.get(f"{prefix}_{metric.name}") for prefix in baselines)]
    numbers = [float(value) if is_number(value) else math.nan for value in found]  # type: ignore[arg-type]
    worst = -math.inf if metric.higher_is_better else math.inf
    ranked = [worst if math.isnan(value) else value for value in numbers]
    best = max(ranked) if metric.higher_is_better else min(ranked)
    compared = sum(is_number(value) for value in found) > 1 and ranked.count(best) == 1
    texts = tuple(
        _formed(metric, value) if is_number(there) else "" for value, there in zip(numbers, found, strict=True)
    )
    keeps = True
    asked = ""
    if is_number(bound):
        asked = f"{'≥' if metric.higher_is_better else '≤'} {bound:g}"
        keeps = numbers[0] >= bound if metric.higher_is_better else numbers[0] <= bound
    return Score(
        metric.text, metric.higher_is_better, texts, asked, ranked.index(best) if compared else None, not keeps
    )


def _formed(metric: Metric, value: float) -> str:
    return f"{value:{metric.form}}" if math.isfinite(value) else number(value)


def _others(summary: Mapping[str, Any], shown: set[str]) -> tuple[list[tuple[str, str]], list[ListTable]]:
    """Figures with names in words, and lists. shown: metrics that have a row of their own."""
    figures: list[tuple[str, str]] = []
    lists: list[ListTable] = []
    for key, value in summary.items():
        name = str(key)
        if name == "error":
            continue
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            lists.append(_list_table(name, value))
        elif isinstance(value, Mapping):
            inner = {str(k): v for k, v in value.items() if not (name == "criterion" and k in shown)}
            figures += [
                (f"{in_words(name)}: {k.removeprefix('num_').replace('_', ' ')}", plain(v)) for k, v in inner.items()
            ]
        elif name.startswith(_LOSS_AT):
            figures.append((f"Loss at t = {name.removeprefix(_LOSS_AT)}", plain(value)))
        elif name.startswith(_ANSWER):
            figures.append((f"Answer to {name.removeprefix(_ANSWER).replace('_', ' ')} (0: unseen)", plain(value)))
        else:
            figures.append((in_words(name), plain(value)))
    return figures, lists


def _list_table(title: str, rows: list[Mapping[str, Any]]) -> ListTable:
    keys = tuple(dict.fromkeys(str(key) for row in rows for key in row))
    keys = tuple(key for key in keys if key != "tolerated" or any(row.get(key) for row in rows))
    cells = tuple(tuple(_cell(row, key) for key in keys) for row in rows)
    columns = tuple(in_words(_HEADINGS.get(key, key)) for key in keys)
    failed = (row.get("passed") is False and row.get("tolerated") is not True for row in rows)
    return ListTable(title, columns, cells, frozenset(i for i, bad in enumerate(failed) if bad))


def _cell(row: Mapping[str, Any], key: str) -> str:
    """What to do about a check that passed is nothing."""
    return "" if key not in row or (key == "mend" and row.get("passed") is True) else plain(row[key])
