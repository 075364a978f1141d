"""What the command prints of an evaluation, and of two."""

from collections.abc import Mapping, Sequence
from typing import Any

from shadowlab.charts import Metric
from shadowlab.console import Column, FittedTable, Reporter
from shadowlab.evaluation.comparison import Compared
from shadowlab.evaluation.judging import PAGE, Evaluated
from shadowlab.plain_text import counted

_FIRST = ("soft_iou", "soft_iou_without_haze", "rmse", "zncc")  # where there is no room for all


def show_evaluation(evaluated: Evaluated, reporter: Reporter) -> None:
    """Tables, notes, and where the files are."""
    document, metrics = evaluated.document, evaluated.subject.evaluation.metrics
    for track, found in document["tracks"].items():
        title = f"{track}: {found['num_samples']} sample{'' if found['num_samples'] == 1 else 's'}"
        reporter.table(_table(title, found["methods"], document["published"].get(track, {}), metrics))
    if document["control"]:
        reporter.table(_control(document["control"], evaluated.subject.evaluation.control_texts))
    for note in document["notes"]:
        reporter.say(f"note: {note}")
    reporter.conclude(f"{evaluated.name}: {evaluated.folder / PAGE}")
    reporter.result(document)


def show_comparison(compared: Compared, reporter: Reporter) -> None:
    """A table a track and pair of methods."""
    document = compared.document
    reporter.say(f"first: {document['first']}; second: {document['second']}")
    for track, found in document["tracks"].items():
        for pair, rows in found["pairs"].items():
            reporter.table(
                _compared(f"{track}, {pair}: {counted(found['num_samples'], 'sample')}", rows, compared.metrics)
            )
    for note in document["notes"]:
        reporter.say(f"note: {note}")
    reporter.conclude(str(compared.file))
    reporter.result(document)


def _table(
    title: str,
    methods: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Mapping[str, float]],
    metrics: Sequence[Metric],
) -> FittedTable:
    columns = [Column("", is_head=True)]
    first = [metric for metric in metrics if metric.name in _FIRST] or list(metrics[:4])
    shown = [*first, *(metric for metric in metrics if metric not in first)]
    for metric in shown:
        heading = metric.text.replace(" without", "\nwithout")
        columns.append(Column(heading, is_right=True, is_optional=metric not in first, card_title=metric.text))
    table = FittedTable(columns, title=title)
    for method, of_metric in methods.items():
        table.add_row(method, *(_cell(of_metric[metric.name], metric) for metric in shown))
    for name, figures in published.items():
        table.add_row(name, *(f"{figures[m.name]:{m.form}}" if m.name in figures else "" for m in shown))
    return table


def _control(control: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str]) -> FittedTable:
    columns = [Column("", is_head=True, wraps=True)]
    columns += [Column(name.replace(" ", "\n", 1), is_right=True, card_title=name) for name in control]
    table = FittedTable(columns, title="control, without ground truth")
    for name, text in texts.items():
        values = [measured.get(name) for measured in control.values()]
        if any(values):
            table.add_row(text, *("" if one is None else f"{one['mean']:.3g}" for one in values))
    return table


def _cell(summary: Mapping[str, Any], metric: Metric) -> str:
    text = f"{summary['mean']:{metric.form}}"
    return f"{text}±{summary['std']:{metric.form}}" if summary["std"] else text


def _compared(title: str, rows: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric]) -> FittedTable:
    names = ("better", "worse", "equal", "p", "difference", "95 %")
    columns = [Column("first is", is_head=True), *(Column(name, is_right=True) for name in names)]
    table = FittedTable(columns, title=title)
    for metric in metrics:
        row = rows[metric.name]
        interval = "" if row["low"] is None else f"{row['low']:+{metric.form}} to {row['high']:+{metric.form}}"
        counts = [str(row[name]) for name in ("wins", "losses", "ties")]
        table.add_row(metric.text, *counts, f"{row['p']:.2g}", f"{row['difference']:+{metric.form}}", interval)
    return table
