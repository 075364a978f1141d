"""The benchmark of the views measures what the views write."""

from pathlib import Path

from diagnostics.records import History
from shadowlab.bench.long_run import format_table as format_long_run
from shadowlab.bench.long_run import make_long_run, measure_long_run
from shadowlab.bench.views import ViewsReport, _measure, format_table, records


def test_a_row_counts_bytes_and_dumps() -> None:
    layers = [f"blocks.{i}.conv" for i in range(3)]
    made = list(records(layers, ["blocks.0.conv.weight"], 10, 2, ["blocks.0.conv.weight"], 5))
    assert [record["step"] for record in made if "layers" in record] == [1, 2, 4, 6, 8, 10]
    assert [record["step"] for record in made if "histograms" in record] == [1, 5, 10]
    row = _measure("small", iter(made))
    assert (row.num_records, row.dumps) == (10, 6)
    assert 0 < row.picture_bytes < row.event_bytes < 1e6
    text = format_table(ViewsReport(3, 1, 1, [row]))
    assert f"{row.event_bytes / 1e4:.2f}" in text and "below 1 % of a step" in text


def test_a_long_run_has_every_kind_of_record_and_each_command_is_measured(tmp_path: Path) -> None:
    layers, parameters = [f"blocks.{i}.conv" for i in range(3)], ["blocks.0.conv.weight"]
    run = tmp_path / "runs" / "long"
    size = make_long_run(run, 40, layers=layers, parameters=parameters, every=5)
    history = History.read(run / "metrics.jsonl")
    assert history.steps() == tuple(range(1, 41)) and history.measured_steps == (1, *range(5, 41, 5))
    assert history.kinds == ("train", "validation", "health", "incident") and len(history.headers) == 2
    report = measure_long_run(40, run, only=["report"])
    [cost] = report.costs
    assert report.record_bytes == size and cost.words[0] == "report" and cost.code == 0
    assert cost.peak_mib > 50 and cost.wrote_bytes > 1000 and "report" in format_long_run(report)
