"""What is drawn of a run, once for every view: charts over its steps, and maps of its layers by steps. Data only.

A chart of the harness is listed here; one of the task stands in the header of the records (see `shadowlab.charts`).
Records without it, of earlier versions or of other loops, are drawn by general rules.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diagnostics.records import History
from shadowlab.charts import SAMPLES, Chart, Curve

_SAMPLES = {"validation": "held-out samples", "fixed_grid": "the fixed grid"}  # of the harness's evaluations
_ANSWER = "response_"
_NOT_JUDGED = ("kind", "step", "loss")


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    label: str
    """In the legend."""
    kind: str
    """Of the records: of training steps, or of evaluations."""
    key: str
    """Of a record, as `History.curve` takes it. One that ends in `*` stands for every key that begins so, each with a
    line of its own and the rest of the key in its label."""

    @property
    def pattern(self) -> str:
        """A regular expression of its tags in TensorBoard."""
        name = re.escape(self.key.removesuffix("*")).replace(r"\.", "[./]")
        return f"^{re.escape(self.kind)}/{name}{'' if self.key.endswith('*') else '$'}"

    def among(self, keys: Iterable[str]) -> "list[Line]":
        """The lines that it stands for where records have these keys; itself where it names one."""
        start = self.key.removesuffix("*")
        if start == self.key:
            return [self]
        own = sorted(key for key in keys if key.startswith(start))
        return [replace(self, label=f"{self.label}{key.removeprefix(start)}", key=key) for key in own]


@dataclass(frozen=True)
class Plot:
    """Lines that share their axes."""

    name: str
    """Letters, digits and hyphens; no two plots of a run have the same."""
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    has_marks: bool = False
    """Whether skipped steps and incidents are marked in it."""
    is_smoothed: bool = False
    """Whether each line is drawn as its running mean, its points faintly behind: they are of few samples each."""


@dataclass(frozen=True)
class LayerMap:
    """One statistic of every layer over the steps."""

    key: str
    title: str
    part: str
    """Of a layer's record: `activation` or `gradient`."""
    statistic: str
    is_log: bool = True
    low_is_worse: bool = False
    """Which of the values that share a column is kept, and which end of the colours is bright."""
    unit: str = ""
    absent: str = "not measured"
    """What it means that a step has no number for a layer."""


LAYER_MAPS = (
    LayerMap("activation_norm", "Activation norm", "activation", "norm"),
    LayerMap("gradient_norm", "Gradient norm", "gradient", "norm", absent="no gradient"),
    LayerMap(
        "headroom_bits",
        "Headroom of activations",
        "activation",
        "headroom_bits",
        is_log=False,
        low_is_worse=True,
        unit="bits",
    ),
)


def plots(kind: str, charts: Sequence[Chart] | None, judged: Mapping[str, Iterable[str]]) -> list[Plot]:
    """What is drawn of a run, in order.

    Args:
        kind: of its training steps.
        charts: of its header; None where that has none.
        judged: kind of its evaluations -> keys of their numbers; those that are to come, where it is empty.
    """
    judged = judged or {"fixed_grid" if kind == "overfit" else "validation": ()}
    before, after = _of_steps(kind, list(judged)), _costs(kind)
    names = {plot.name for plot in (*before, *after)}
    own = []
    for evaluation, keys in judged.items():
        others = f" ({_samples(evaluation)})" if len(judged) > 1 else ""
        for chart in guessed_charts(keys) if charts is None else charts:
            title = chart.title if SAMPLES in chart.title else f"{chart.title}{others}"
            title = title.replace(SAMPLES, _samples(evaluation))
            lines = tuple(Line(curve.label, evaluation, curve.key) for curve in chart.curves)
            own.append(Plot(_new_name(title, names), title, lines, chart.unit))
    return [*before, *own, *after]


def _of_steps(kind: str, evaluations: Sequence[str]) -> list[Plot]:
    """The loss, of evaluations too, and what the optimizer does."""
    judged = (Line(evaluation.replace("_", " "), evaluation, "loss") for evaluation in evaluations)
    clipping = (Line("before clipping", kind, "grad_norm"), Line("after clipping", kind, "grad_norm_clipped"))
    return [
        Plot("loss", "Loss", (Line("training", kind, "loss"), *judged), has_marks=True),
        Plot("loss-by-t", "Loss by t (0 is noise, 1 is data)", (Line("t ", kind, "loss_by_t.*"),), is_smoothed=True),
        *(
            Plot(f"loss-by-t-{number}", f"Loss by t on {_samples(one)}", (Line("t ", one, "loss_t*"),))
            for number, one in enumerate(evaluations, 1)
        ),
        Plot("gradient-norm", "Gradient norm", clipping, has_marks=True),
        Plot("learning-rate", "Learning rate", (Line("learning rate", kind, "learning_rate"),)),
        Plot("loss-scale", "Loss scale", (Line("loss scale", kind, "loss_scale"),), has_marks=True),
    ]


def _costs(kind: str) -> list[Plot]:
    seconds = (Line("step", kind, "step_seconds"), Line("waiting for data", kind, "data_wait_seconds"))
    return [
        Plot("time", "Time of a step", seconds, unit="s"),
        Plot("memory", "Memory", (Line("memory", kind, "memory_gib"),), unit="GiB"),
    ]


def _samples(evaluation: str) -> str:
    """What is judged in evaluations of this kind, in words."""
    return _SAMPLES.get(evaluation, evaluation.replace("_", " "))


def plots_of(history: History) -> list[Plot]:
    """`plots` of the records of a run.

    Raises:
        ValueError: as `charts_in`.
    """
    return plots(history.kind, charts_in(history.header), judged_keys(history))


def charts_in(header: Mapping[str, Any]) -> tuple[Chart, ...] | None:
    """What a task wants drawn of its evaluations; None where the header says nothing about it.

    Raises:
        ValueError: what it says are no charts.
    """
    if "charts" not in header:
        return None
    try:
        if not isinstance(header["charts"], list):
            raise ValueError(f"a list, not {header['charts']!r}")
        return tuple(map(Chart.from_json, header["charts"]))
    except ValueError as error:
        raise ValueError(f"`charts` of a header of metrics.jsonl: {error}; remove the key from that line") from error


def judged_keys(history: History) -> dict[str, list[str]]:
    """Kind of evaluations -> keys of all numbers that they have, in the order of their records."""
    return {kind: list(history.keys(kind)) for kind in history.evaluations}


def number_keys(record: Mapping[str, Any]) -> list[str]:
    """Of what can be drawn of a record."""
    return [key for key, value in record.items() if is_number(value)]


def main_numbers(charts: Sequence[Chart] | None, record: Mapping[str, Any]) -> list[tuple[Curve, float]]:
    """An evaluation in a line: the numbers of the first chart that has some."""
    for chart in guessed_charts(record) if charts is None else charts:
        found = [(curve, record[curve.key]) for curve in chart.curves if is_number(record.get(curve.key))]
        if found:
            return found
    return []


def guessed_charts(keys: Iterable[str]) -> tuple[Chart, ...]:
    """Of evaluations whose task says nothing, by their keys.

    A key X with a twin BASELINE_X shares its chart, `response_*` are one chart, and every other has its own.
    """
    judged = [key for key in keys if key not in _NOT_JUDGED and not key.startswith("loss_t")]
    answers = [key for key in judged if key.startswith(_ANSWER)]
    metrics = [key for key in judged if key not in answers]
    baselines = {key: twin for key in metrics if (twin := _metric_of(key, metrics)) is not None}
    found = []
    for key in metrics:
        if key in baselines:
            continue
        twins = [other for other, metric in baselines.items() if metric == key]
        name = _words(key)
        if not twins:
            found.append(Chart(f"{name} on {SAMPLES}", (Curve(name, key),)))
            continue
        curves = [Curve(_words(twin.removesuffix(f"_{key}")).lower(), twin) for twin in twins]
        found.append(Chart(name, (Curve("model", key), *curves)))
    if answers:
        curves = [Curve(key.removeprefix(_ANSWER).replace("_", " "), key) for key in answers]
        found.append(Chart("Answer to each condition (0: unseen)", tuple(curves)))
    return tuple(found)


def is_number(value: Any) -> bool:
    """Whether a record's value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric_of(key: str, metrics: Sequence[str]) -> str | None:
    """The metric of which `key` is a baseline's: `rmse` of `black_rmse`. One that has a baseline itself is none's."""
    if any(other.endswith(f"_{key}") for other in metrics):
        return None
    return max((metric for metric in metrics if key.endswith(f"_{metric}")), key=len, default=None)


def _words(key: str) -> str:
    """`RMSE`, `Soft iou`, `R²`."""
    if key == "r2":
        return "R²"
    text = key.replace("_", " ")
    return text.upper() if text.isalpha() and len(text) <= 4 else text[:1].upper() + text[1:]


def _new_name(title: str, taken: set[str]) -> str:
    """Of a plot by its title; `taken` has it from now on."""
    name = base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "chart"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    taken.add(name)
    return name
