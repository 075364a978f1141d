"""The benchmark of the views measures what the views write."""

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
