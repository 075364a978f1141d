"""The end of the records, read backwards: all that counts, in the order from the last, whatever the lengths."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.records.lines import RecordWriter, read_records
from shadowlab.runs import tail
from shadowlab.runs.tail import first_header, last_records


def written(metrics: Path, *records: dict[str, Any]) -> Path:
    metrics.unlink(missing_ok=True)
    writer = RecordWriter(metrics)
    for record in records:
        writer.write(record)
    writer.close()
    return metrics


@given(st.lists(st.integers(0, 50_000), max_size=12))
def test_records_come_back_in_reverse(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    """Lines longer and shorter than the blocks that are read."""
    records = [{"kind": "train", "step": i, "note": "x" * length} for i, length in enumerate(lengths)]
    metrics = written(tmp_path_factory.mktemp("tail") / "metrics.jsonl", *records)
    assert list(last_records(metrics)) == records[::-1] == list(read_records(metrics))[::-1]


def test_of_a_record_with_statistics_the_kind_and_the_step_are_read(tmp_path: Path) -> None:
    layers = {f"layer{i}": {"activation": {"norm": 1.0}} for i in range(3000)}
    long = {"kind": "train", "step": 7, "layers": layers}
    odd = {"layers": layers, "kind": "train", "step": 8}  # of another writer: read in full
    metrics = written(tmp_path / "metrics.jsonl", long, odd)
    assert list(last_records(metrics)) == [odd, {"kind": "train", "step": 7}]


def test_a_cut_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    metrics = written(tmp_path / "metrics.jsonl", {"kind": "header", "stage": "train"}, {"kind": "train", "step": 1})
    with metrics.open("a") as file:
        file.write('{"kind": "train", "st')
    assert [record["kind"] for record in last_records(metrics)] == ["train", "header"]
    assert first_header(metrics) == {"kind": "header", "stage": "train"}
    with metrics.open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: a line is not a JSON record"):
        list(last_records(metrics))
    metrics.write_bytes(b"\xff\xfe\n" + json.dumps({"step": 1}).encode() + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: a line is not a JSON record"):
        first_header(metrics)


def test_what_is_read_of_a_long_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_MOST_BYTES", 100_000)
    metrics = written(tmp_path / "metrics.jsonl", *({"kind": "train", "step": i} for i in range(50_000)))
    found = [record["step"] for record in last_records(metrics)]
    assert found == list(range(49_999, 49_999 - len(found), -1))
    assert 100_000 / 40 < len(found) < 200_000 / 20


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    assert list(last_records(tmp_path / "metrics.jsonl")) == []
    assert first_header(tmp_path / "metrics.jsonl") == {}
