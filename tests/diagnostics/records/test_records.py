"""JSON lines: strict, faithful, and whole after a kill."""

import json
import math
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from diagnostics import RecordWriter, read_records
from diagnostics.files import LONGEST_LINE
from diagnostics.records.lines import decode, encode

words = st.sampled_from(["NaN", "Infinity", "-Infinity", "\\NaN", "\\\\-Infinity", "\\", "nan", "\u2028", "\x1c\n"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | words, inner, max_size=4),
    max_leaves=12,
)


def same(a, b) -> bool:
    """Equal, floats to 7 digits, nan equal to nan."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=1e-6)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values)
def test_round_trip(value):
    text = json.dumps(encode(value), allow_nan=False)
    assert same(decode(json.loads(text, parse_constant=pytest.fail)), value)


def test_text_that_reads_nan_stays_text():
    assert [encode(x) for x in (math.nan, "NaN", "\\NaN", "nan")] == ["NaN", "\\NaN", "\\\\NaN", "nan"]
    assert decode(["\\NaN", "\\\\NaN", "\\other"]) == ["NaN", "\\NaN", "\\other"]


@pytest.mark.parametrize("value", [torch.ones(1), Path("x"), {1, 2}, b"bytes"])
def test_other_types_are_refused_by_name(value):
    with pytest.raises(TypeError, match=f"a record holds .* not {type(value).__name__}"):
        encode({"deep": [value]})


def write(path: Path, *records: dict, **options) -> None:
    writer = RecordWriter(path, **options)
    for record in records:
        writer.write(record)
    writer.close()


class TestFile:
    def test_each_line_is_strict_json_and_flushed(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = RecordWriter(path)
        writer.write({"step": 1, "loss": math.inf, "text": "é\u2028\n"})
        (line,) = path.read_bytes().split(b"\n")[:-1]
        json.loads(line, parse_constant=pytest.fail)
        writer.write({"step": 2, "loss": -math.inf, "bad": math.nan})
        first, second = read_records(path)
        assert (first["loss"], first["text"], second["loss"]) == (math.inf, "é\u2028\n", -math.inf)
        assert math.isnan(second["bad"])
        writer.close()

    @pytest.mark.parametrize("kept", range(1, 25))
    def test_killed_at_any_byte(self, tmp_path, kept: int):
        path = tmp_path / "metrics.jsonl"
        write(path, {"step": 1}, {"step": 2})
        whole = path.read_bytes()
        path.write_bytes(whole[: -min(kept, len(whole))])
        steps = [record["step"] for record in read_records(path)]
        assert steps == [1, 2][: len(steps)]
        write(path, {"step": 3})
        assert [record["step"] for record in read_records(path)] == [*steps, 3]

    def test_resume_drops_later_steps_and_leaves_other_lines_as_they_were(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        write(path, *({"step": n, "loss": n / 3} for n in range(1, 6)))
        head = b'{"note":  "by hand", "x": 0.12345678901}\n'
        path.write_bytes(head + path.read_bytes())
        before = path.read_bytes().splitlines()
        write(path, {"step": 4, "loss": 0.0}, keep_until_step=3)
        after = path.read_bytes().splitlines()
        assert after[:4] == before[:4]
        assert [record.get("step") for record in read_records(path)] == [None, 1, 2, 3, 4]
        assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"step": ', "Expecting"),
            (b"[1]", "not an object"),
            (b"", "Expecting"),
            (b'{"a": "\xff"}', "utf-8"),
            (b"\0\0\0", "Expecting"),
            pytest.param(b"[" * 100_000, "nested", id="brackets without end"),
        ],
    )
    @pytest.mark.parametrize("last", [False, True])
    def test_damage_names_file_and_line(self, tmp_path, line: bytes, reason: str, last: bool):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b'{"step": 1}\n' + line + b"\n" + (b"" if last else b'{"step": 3}\n'))
        with pytest.raises(ValueError, match=rf"metrics.jsonl:2: not a JSON record \(.*{reason}"):
            list(read_records(path))
        with pytest.raises(ValueError, match="metrics.jsonl:2"):
            RecordWriter(path, keep_until_step=9)
        assert path.read_bytes().startswith(b'{"step": 1}\n' + line)

    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_a_line_without_end_is_not_read_into_memory(self, tmp_path, end: bytes):
        """A file system may leave gigabytes of zeros after a power cut."""
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b'{"step": 1}\n')
        with path.open("ab") as file:
            file.truncate(LONGEST_LINE + 100)  # sparse
            file.write(end)
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: a line of .* MiB or more"):
            list(read_records(path))

    def test_empty_file(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.touch()
        assert list(read_records(path)) == []
        write(path, {"step": 1}, keep_until_step=0)
        assert len(list(read_records(path))) == 1


def test_a_long_run_of_a_large_model(tmp_path):
    """900 layers of 12 values in 200 records. Writing one record takes some hundredths of a second."""
    names = ("norm", "mean", "std", "max_abs", "fraction_zero", "num_nonfinite")
    statistics = dict.fromkeys(names, 1.2345678e-3)
    layers = {f"down_blocks.{n}.conv": {"activation": statistics, "gradient": statistics} for n in range(900)}
    path = tmp_path / "metrics.jsonl"
    started = time.process_time()
    write(path, *({"step": n, "layers": layers} for n in range(200)))
    written = time.process_time()
    write(path, {"step": 101}, keep_until_step=100)
    resumed = time.process_time()
    assert sum(1 for _ in read_records(path)) == 102
    assert written - started < 200 * 0.1
    assert resumed - written < 10
