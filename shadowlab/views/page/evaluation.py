"""The page of an evaluation: tables, metrics over the number of steps, and the best, median and worst samples."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostics.files import reason_of, replace
from diagnostics.records import Curve
from shadowlab import __version__
from shadowlab.charts import Metric
from shadowlab.errors import UserError
from shadowlab.views.page import curves
from shadowlab.views.page.curves import Drawing, Panel, Series
from shadowlab.views.page.template import page_environment, policy_hash, style_and_script

_STYLES = 5  # of lines, that the style sheet has
_PUBLISHED = "published"
_TRUTH = "truth"


@dataclass(frozen=True)
class SampleCell:
    """One picture of a sample."""

    caption: str
    png: bytes
    width: int
    """Pixels."""
    height: int

    @property
    def address(self) -> str:
        """A data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"

    @property
    def is_error(self) -> bool:
        return self.caption.startswith("error of ")


@dataclass(frozen=True)
class JudgedSample:
    """A sample that is shown."""

    track: str
    word: str
    """`best 1`, `median`, `worst 2`."""
    name: str
    conditions: str
    """For people."""
    value: float
    """Of the metric that it was picked by."""
    cells: tuple[SampleCell, ...]

    @property
    def pairs(self) -> list[tuple[SampleCell, SampleCell | None]]:
        """What is given and the truth; then each method's picture with its error."""
        given, truth, *others = self.cells
        return [(given, truth), *zip(others[::2], others[1::2], strict=True)]


@dataclass(frozen=True)
class Score:
    """One cell of a table."""

    label: str
    """Heading of its column."""
    text: str
    """Mean, and what a seed changes."""
    interval: str
    """Over samples; may be empty."""
    is_best: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """One method."""

    method: str
    scores: tuple[Score, ...]
    is_published: bool = False


@dataclass(frozen=True)
class TrackPart:
    """One section of the page."""

    key: str
    """Of its address."""
    name: str
    num_samples: int
    rows: tuple[ScoreRow, ...]
    drawings: tuple[Drawing, ...]
    samples: tuple[JudgedSample, ...]


def write_evaluation_page(
    file: Path,
    *,
    name: str,
    document: Mapping[str, Any],
    metrics: Sequence[Metric],
    ranking: str,
    ranked: str,
    drawn: Sequence[str],
    methods: Sequence[str],
    steps: Sequence[int],
    control_texts: Mapping[str, str],
    facts: Sequence[tuple[str, str]],
    samples: Sequence[JudgedSample],
) -> None:
    """Write the page of an evaluation; the same file for the same arguments.

    Args:
        name: what was judged.
        document: evaluation.json.
        metrics: in the order of the columns.
        ranking: name of the metric that samples are picked by.
        ranked: the method whose value it is.
        drawn: names of the metrics that are drawn over the steps.
        methods: names, in the order of the rows; the first is what was asked about.
        steps: of the model; empty where there is none.
        control_texts: name of a measure -> what it is, for people.
        facts: name and value, for the head of the page.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [
        _part(number, track, document, metrics, drawn, methods, steps, samples)
        for number, track in enumerate(document["tracks"])
    ]
    chosen = next(metric for metric in metrics if metric.name == ranking)
    content = (
        page_environment()
        .get_template("evaluation.html")
        .render(
            name=name,
            headline=_headline(document, metrics, methods),
            facts=facts,
            notes=document["notes"],
            metrics=metrics,
            ranking=chosen,
            ranked=ranked,
            parts=parts,
            control=_control_rows(document["control"], methods, control_texts),
            **_frame(parts),
        )
    )
    try:
        replace(file, content.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({reason_of(error)}); give another --out") from error


def _frame(parts: Sequence[TrackPart]) -> dict[str, Any]:
    """What does not depend on the numbers, and the data of the curves."""
    style, script = style_and_script("evaluation.css")
    return {
        "curve_size": (curves.WIDTH, curves.HEIGHT),
        "curve_data": {drawing.panel.key: drawing.data for part in parts for drawing in part.drawings},
        "axis": "steps of sampling",
        "version": __version__,
        "style": style,
        "script": script,
        "style_hash": policy_hash(style),
        "script_hash": policy_hash(script),
    }


def _part(
    number: int,
    track: str,
    document: Mapping[str, Any],
    metrics: Sequence[Metric],
    drawn: Sequence[str],
    methods: Sequence[str],
    steps: Sequence[int],
    samples: Sequence[JudgedSample],
) -> TrackPart:
    found = document["tracks"][track]
    published = document["published"].get(track, {})
    rows = [_row(method, found["methods"], metrics, methods) for method in methods]
    rows += [
        ScoreRow(name, tuple(_published_score(metric, figures) for metric in metrics), is_published=True)
        for name, figures in published.items()
    ]
    shown = tuple(metric for metric in metrics if metric.name in drawn)
    drawings = tuple(_drawing(number, metric, found["methods"], published, methods, steps) for metric in shown)
    return TrackPart(
        f"track-{number}",
        track,
        found["num_samples"],
        tuple(rows),
        drawings if len(steps) > 1 else (),
        tuple(one for one in samples if one.track == track),
    )


def _row(method: str, found: Mapping[str, Any], metrics: Sequence[Metric], methods: Sequence[str]) -> ScoreRow:
    judged = [other for other in methods if other != _TRUTH]
    scores = []
    for metric in metrics:
        summary = found[method][metric.name]
        means = [found[other][metric.name]["mean"] for other in judged]
        best = (max if metric.higher_is_better else min)(means, default=None)
        text = f"{summary['mean']:{metric.form}}"
        if summary["std"]:
            text += f" ± {summary['std']:{metric.form}}"
        interval = ""
        if summary["low"] is not None:
            interval = f"{summary['low']:{metric.form}} to {summary['high']:{metric.form}}"
        is_best = method != _TRUTH and len(judged) > 1 and summary["mean"] == best
        scores.append(Score(metric.text, text, interval, is_best))
    return ScoreRow(method, tuple(scores))


def _published_score(metric: Metric, figures: Mapping[str, float]) -> Score:
    value = figures.get(metric.name)
    return Score(metric.text, "" if value is None else f"{value:{metric.form}}", "")


def _drawing(
    number: int,
    metric: Metric,
    found: Mapping[str, Any],
    published: Mapping[str, Any],
    methods: Sequence[str],
    steps: Sequence[int],
) -> Drawing:
    """One metric over the number of steps, and of what several seeds make together; a method without steps is a level
    line."""

    def mean(method: str) -> float:
        return float(found[method][metric.name]["mean"])

    own, others = methods[: len(steps)], methods[len(steps) :]
    together = [name for one in own for name in others if name.startswith(f"{one}, ")]
    lines = [("model", Curve(tuple(steps), tuple(map(mean, own))))]
    if together:
        lines.append((together[0].removeprefix(f"{own[0]}, "), Curve(tuple(steps), tuple(map(mean, together)))))
    lines += [(name, Curve(tuple(steps), (mean(name),) * len(steps))) for name in others if name not in together]
    points = {
        count: figures[metric.name]
        for count in steps
        for name, figures in published.items()
        if metric.name in figures and name.startswith(f"{_PUBLISHED}, {count} step")
    }
    if points:
        lines.append((_PUBLISHED, Curve(tuple(points), tuple(points.values()))))
    series = tuple(Series.of(name, curve, f"s{i % _STYLES}") for i, (name, curve) in enumerate(lines))
    title = metric.text[:1].upper() + metric.text[1:]
    arrow = "higher is better" if metric.higher_is_better else "lower is better"
    panel = Panel(f"track-{number}-{metric.name.replace('_', '-')}", f"{title}, {arrow}", series)
    return curves.draw(panel, steps[0] if steps else 0, steps[-1] if steps else 1)


def _headline(document: Mapping[str, Any], metrics: Sequence[Metric], methods: Sequence[str]) -> str:
    """`Softness control: soft IoU 0.74 and RMSE 0.031 in 1 step ...` of the first track and method."""
    track, found = next(iter(document["tracks"].items()))
    shown = [metrics[0], *(metric for metric in metrics if not metric.higher_is_better)][:2]
    words = " and ".join(f"{m.text} {found['methods'][methods[0]][m.name]['mean']:{m.form}}" for m in shown)
    return f"{methods[0]}: {words} on {track}"


def _control_rows(control: Mapping[str, Any], methods: Sequence[str], texts: Mapping[str, str]) -> list[ScoreRow]:
    measures = [name for name in texts if any(name in measured for measured in control.values())]
    rows = []
    for method in methods:
        measured = control.get(method, {})
        scores = []
        for measure in measures:
            one = measured.get(measure)
            interval = "" if one is None or one["low"] is None else f"{one['low']:.3g} to {one['high']:.3g}"
            scores.append(Score(texts[measure], "" if one is None else f"{one['mean']:.3g}", interval))
        if measured:
            rows.append(ScoreRow(method, tuple(scores)))
    return rows
