"""A long file's history is that of its records, whatever becomes of the index beside it."""

import json
import math
import os
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diagnostics.health import examine
from diagnostics.records import History, RecordWriter, halves, index, read_records, source
from diagnostics.records import columns as columns_module

INDEX = "metrics.index"


@pytest.fixture(autouse=True, params=["one process", "two processes"])
def every_file_is_long(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Files of any size get an index, in blocks of a few records."""
    monkeypatch.setattr(source, "KEPT_BYTES", 0)
    monkeypatch.setattr("diagnostics.records.history.KEPT_BYTES", 0)
    monkeypatch.setattr(source, "_LEAST_GROWTH", 0)
    monkeypatch.setattr(columns_module, "_BLOCK_NUMBERS", 400)
    if request.param == "two processes":
        monkeypatch.setattr(halves, "WORTHWHILE_BYTES", 1)
        monkeypatch.setattr(source, "_BEGINNING_BYTES", 300)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def made(seed: int, length: int) -> list[dict[str, Any]]:
    """Records of every kind: steps written twice and out of order, layers that come and go, NaN, odd values."""
    random_ = random.Random(seed)
    odd: list[Any] = [math.nan, math.inf, -math.inf, 0.0, 1e300, -3, 7]
    found: list[dict[str, Any]] = [{"kind": "header", "stage": "train", "num_samples": 5}]
    step = 0
    for _ in range(length):
        step = max(0, step + random_.choice((1, 1, 1, 1, 2, -3)))

        def number() -> float:
            return random_.choice(odd) if random_.random() < 0.1 else float(f"{random_.uniform(-5, 5):.7g}")

        chance = random_.random()
        if chance < 0.05:
            found.append({"kind": "header", "stage": random_.choice(("train", "distil"))})
        elif chance < 0.1:
            found.append({"kind": "stage", "step": step, "stage": "train", "passed": False, "message": "m"})
        elif chance < 0.15:
            found.append({"kind": "incident", "step": step, "verdict": {"value": "nan", "rank": 1}})
        elif chance < 0.3:
            judged = {"kind": random_.choice(("validation", "held-out")), "step": step, "loss": number()}
            found.append(judged | ({"r2": number(), "response_theta": 1e-6} if random_.random() < 0.8 else {}))
        else:
            record: dict[str, Any] = {"kind": random_.choice(("train",) * 6 + ("distil",)), "step": step}
            record |= {"loss": number(), "grad_norm": number(), "a.b": number(), "a": {"b": 1.0, "c": number()}}
            record |= {"samples": random_.sample(["s0", "s1", "s2", "s\u00e9", "NaN"], 3), "text": "NaN", "no": None}
            record |= {"skipped": random_.random() < 0.2, "learning_rate": 1e-3, "memory_gib": 1.0}
            for key in random_.sample(sorted(record), random_.randrange(4)):
                if key not in ("kind", "step"):
                    del record[key]
            if random_.random() < 0.6:
                names = random_.sample(["in", "mid", "out", "late"], random_.randrange(1, 5))
                parts = {"activation": ("norm", "max_abs", "num_nonfinite"), "gradient": ("norm", "mean", "std")}
                record["layers"] = {
                    name: {
                        part: {key: number() for key in keys} for part, keys in parts.items() if random_.random() < 0.9
                    }
                    for name in names
                }
                record["parameters"] = {
                    f"{name}.weight": {"gradient_norm": random_.choice((None, 0.0, number())), "update_ratio": number()}
                    for name in names
                }
            found.append(record)
    return found


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "metrics.jsonl"
    writer = RecordWriter(path)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def told(history: History) -> dict[str, Any]:
    """All that a history says, as text: NaN equals NaN."""
    kinds = [history.kind, *history.kinds]
    found: dict[str, Any] = {
        "kinds": (history.kind, history.kinds, history.evaluations, history.last_step, history.header, history.headers),
        "stage": history.last_stage,
        "records": {kind: list(history.records(kind)) for kind in kinds},
        "measured": (history.measured_steps, list(history.measured_records()), history.measured_skipped.tolist()),
        "names": (history.layer_names, history.parameter_names, history.named_parameters().tolist()),
        "curves": {
            (kind, key): history.curve(key, kind) for kind in kinds for key in ("loss", "a.b", "a.c", "verdict.rank")
        },
        "skipped": {kind: history.skipped(kind).tolist() for kind in kinds},
        "keys": {kind: (history.keys(kind), history.keys(kind, within="a")) for kind in kinds},
    }
    samples = history.samples()
    found["samples"] = (samples.counts.tolist(), [samples.ids[number] for number in samples.numbers.tolist()])
    for part in ("activation", "gradient"):
        table = history.layers("norm", part)
        found[part] = (
            table.steps,
            table.values.tolist(),
            table.present.tolist(),
            history.layers("norm", part, columns=slice(-3, None)).steps,
        )
    found["ratios"] = history.parameters("update_ratio").values.tolist()
    found["findings"] = list(map(str, examine(history)))
    return {key: repr(value) for key, value in found.items()}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 80))
def test_a_file_is_what_its_records_are(tmp_path_factory: pytest.TempPathFactory, seed: int, length: int) -> None:
    """Read from memory, while the index is made, from the index, and with the index of the first half."""
    path = written(tmp_path_factory.mktemp("run"), made(seed, length))
    lines = path.read_bytes().splitlines(keepends=True)
    expected = told(History(list(read_records(path))))
    assert told(History.read(path)) == expected
    assert path.with_name(INDEX).is_file()
    assert told(History.read(path)) == expected
    path.write_bytes(b"".join(lines[: len(lines) // 2 + 1]))
    path.with_name(INDEX).unlink()
    History.read(path)
    with path.open("ab") as file:
        file.write(b"".join(lines[len(lines) // 2 + 1 :]))
    assert told(History.read(path)) == expected


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_second_process_is_heard_or_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, is_killed: bool
) -> None:
    if "one process" in request.node.name:
        return
    answers: list[int | None] = []
    add_to = halves.SecondHalf.add_to

    def heard(second: halves.SecondHalf, gatherer: Any) -> int | None:
        answers.append(add_to(second, gatherer))
        return answers[-1]

    monkeypatch.setattr(halves.SecondHalf, "add_to", heard)
    if is_killed:
        monkeypatch.setattr(source.RecordsInFile, "_lines_of_child", lambda *_: os.kill(os.getpid(), 9))
    records = [one for one in made(7, 60) if one.get("kind", "train") == "train"]
    path = written(tmp_path, records)
    assert told(History.read(path)) == told(History(list(read_records(path))))
    assert answers == [None if is_killed else path.stat().st_size]


def has_index(path: Path) -> bool:
    with path.open("rb") as file:
        found = index.load(path, file)
    if found is not None:
        found[2].close()
    return found is not None


def test_the_index_is_that_of_one_file_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, made(1, 60))
    expected = told(History.read(path))
    assert has_index(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"loss": ', b'"loss":  ', 1))  # another size, the same inode
    assert not has_index(path)
    assert told(History.read(path)) == expected and has_index(path)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.replace(copy, path)  # the same bytes, as a copy of a run has them
    assert not has_index(path)
    assert told(History.read(path)) == expected


def test_an_index_with_the_numbers_of_another_run_is_not_believed(tmp_path: Path) -> None:
    """Two runs of the same length, and one's index under the other's name with the other's marks."""
    for name, loss in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, [{"kind": "train", "step": i, "loss": loss} for i in range(1, 101)])
        History.read(tmp_path / name / "metrics.jsonl")
    one, two = (tmp_path / name / INDEX for name in ("one", "two"))
    marks = [json.loads(described(place)[1])["source"] for place in (one, two)]
    forge(
        two, described(one)[0], described(one)[1].replace(json.dumps(marks[0]).encode(), json.dumps(marks[1]).encode())
    )
    assert not has_index(two.with_name("metrics.jsonl"))
    assert History.read(two.with_name("metrics.jsonl")).curve("loss").values == (2.0,) * 100


def described(place: Path) -> tuple[bytes, bytes]:
    """Arrays and description of an index."""
    raw = place.read_bytes()
    length = index._END.unpack(raw[-index._END.size :])[0]
    return raw[: -index._END.size - length], raw[-index._END.size - length : -index._END.size]


def forge(place: Path, arrays: bytes, description: bytes) -> None:
    end = index._END.pack(len(description), index.zlib.crc32(description), index._MAGIC)
    place.write_bytes(arrays + description + end)


def damaged(content: bytes) -> Iterator[bytes]:
    random_ = random.Random(0)
    yield b""
    yield content[:-1]
    yield content[: len(content) // 2]
    yield content + b"\0"
    yield b"\0" * len(content)
    for _ in range(25):
        place = random_.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ (1 << random_.randrange(8))]) + content[place + 1 :]


def test_a_damaged_index_is_as_if_there_were_none(tmp_path: Path) -> None:
    path = written(tmp_path, made(2, 50))
    expected, place = told(History.read(path)), path.with_name(INDEX)
    for content in damaged(place.read_bytes()):
        place.write_bytes(content)
        assert told(History.read(path)) == expected


def lies(content: dict[str, Any]) -> Iterator[Any]:
    """Descriptions that are sound JSON, with the checksums of somebody who knows the format."""
    random_ = random.Random(1)
    values: list[Any] = [None, -1, 2**70, 1e400, "x", [], {}, [[]], True, "9" * 5000, 3]
    for _ in range(30):
        copy = json.loads(json.dumps(content))
        at: Any = copy
        while True:
            key = random_.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if isinstance(at[key], dict | list) and at[key] and random_.random() < 0.85:
                at = at[key]
                continue
            if isinstance(at, dict) and random_.random() < 0.2:
                del at[key]
            else:
                at[key] = random_.choice(values)
            break
        yield copy


def test_an_index_that_lies_does_no_harm(tmp_path: Path) -> None:
    """What the records hold comes from them; whatever else the index says, nothing fails."""
    path = written(tmp_path, made(3, 40))
    expected, place = told(History.read(path)), path.with_name(INDEX)
    arrays, text = described(place)
    num_believed = 0
    for content in lies(json.loads(text)):
        forge(place, arrays, json.dumps(content).encode())
        is_believed = has_index(path)
        num_believed += is_believed
        found = "refused"
        with suppress(ValueError):
            found = told(History.read(path))
        assert is_believed or found == expected
    assert 0 < num_believed < 29, "of 30"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "none"])
def test_whatever_stands_in_the_place_of_the_index(tmp_path: Path, kind: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.write_bytes(b"mine")
    path = written(run, made(4, 30))
    expected, place = told(History(list(read_records(path)))), run / INDEX
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "link":
        place.symlink_to(other)
    assert told(History.read(path)) == expected
    assert other.read_bytes() == b"mine"
    assert {entry.name for entry in run.iterdir()} == {"metrics.jsonl", INDEX}


def test_a_folder_that_takes_nothing_has_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a disk that is full when the index, or what it is made from, is written."""
    path = written(tmp_path, made(5, 60))
    expected = told(History(list(read_records(path))))

    def refuse(*args: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(index, "create", refuse)
        assert told(History.read(path)) == expected
        patched.setattr(index.tempfile, "TemporaryFile", refuse)
        assert told(History.read(path)) == expected
    calls = []
    write = index._write

    def full_at_third(file: Any, raw: memoryview) -> None:
        calls.append(1)
        if len(calls) == 3:
            file.write(raw[: len(raw) // 2])
            refuse()
        write(file, raw)

    with monkeypatch.context() as patched:
        patched.setattr(index, "create", refuse)
        patched.setattr(index, "_write", full_at_third)
        assert told(History.read(path)) == expected
    assert len(calls) >= 3 and [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_is_written_to_meanwhile(tmp_path: Path) -> None:
    """Each reading sees a beginning of the records, never half of one; a last line without its end is left out."""
    records = [{"kind": "train", "step": i, "loss": float(i), "samples": ["a", "b"]} for i in range(1, 3001)]
    path = tmp_path / "metrics.jsonl"
    path.touch()
    stop = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for record in records:
                line = json.dumps(record).encode() + b"\n"
                file.write(line[:17])
                file.write(line[17:])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not stop.is_set():
        history = History.read(path)
        steps = history.steps()
        assert steps == tuple(range(1, len(steps) + 1)) and len(steps) >= seen
        assert history.curve("loss").values == tuple(map(float, steps))
        if steps:
            assert history.records()[-1]["step"] == steps[-1]
        seen = len(steps)
    writer.join()
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "step": 30')
    assert told(History.read(path)) == told(History(records))


def test_a_damaged_line_is_named_with_an_index_too(tmp_path: Path) -> None:
    path = written(tmp_path, made(6, 30))
    History.read(path)
    count = len(path.read_bytes().splitlines())
    with path.open("ab") as file:
        file.write(b'{"kind": "tr\n{"kind": "train", "step": 99}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:{count + 1}: not a JSON record"):
        History.read(path)
    errors: list[str] = []
    history = History.read(path, on_damage=lambda error: errors.append(str(error)))
    assert len(errors) == 1 and f":{count + 1}:" in errors[0]
    assert history.last_step < 99


def test_an_earlier_history_goes_on_when_a_resume_replaces_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, [{"kind": "train", "step": i, "loss": i / 2} for i in range(1, 200)])
    history = History.read(path)
    RecordWriter(path, keep_until_step=50).close()
    assert history.records()[150]["step"] == 151
    assert History.read(path).last_step == 50


def test_of_a_table_no_more_is_kept_than_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, made(7, 80))
    history = History.read(path)
    whole, last = history.layers("norm"), history.layers("norm", columns=slice(-4, None))
    assert last.steps == whole.steps[-4:]
    assert torch.equal(last.present, whole.present[:, -4:])
    assert last.values.tolist().__repr__() == whole.values[:, -4:].tolist().__repr__()
