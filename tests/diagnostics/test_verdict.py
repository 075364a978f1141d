"""Verdicts as files hold them: whatever is damaged, one is read or it is not; no reader falls over."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from diagnostics.board.texts import text_of
from diagnostics.verdict import Verdict, read_verdict, read_verdict_file

WHOLE = Verdict(
    "forward",
    "overflow",
    "overflow",
    op="exp",
    module="block",
    parameter="block.weight",
    source="step.py:3",
    samples=(1,),
    sample_ids=("chair",),
    value="inf",
    witness={
        "index": [0],
        "shape": [4],
        "operands": {"self": 12.5},
        "dtype": "float16",
        "limits": {"max": 65504.0},
        "issued_at": "step.py:9",
    },
    path=("exp", "loss"),
    fix="subtract the maximum",
    step=6,
    rank=0,
    reproducible=True,
)
WRONG: tuple[Any, ...] = ("maybe", "", 3, 1.5, float("nan"), True, [], [1], ["a"], [None], [[]], {}, {"a": [1]}, None)
FIELDS = [one.name for one in fields(Verdict)]


def test_a_whole_verdict_comes_back() -> None:
    assert read_verdict(WHOLE.to_json()) == WHOLE
    assert read_verdict(WHOLE.to_json() | {"weather": "rain"}) == WHOLE
    least = read_verdict({"phase": "data", "exception": None, "cause": "bad_data"})
    assert least == Verdict("data", None, "bad_data")


def accepted(field: str, values: tuple[Any, ...] = WRONG) -> list[Any]:
    """Those that are read; each is said, and holds what its type says."""
    kept = []
    for value in values:
        content = WHOLE.to_json() | {field: value}
        assert text_of({"kind": "incident", "verdict": content})
        verdict = read_verdict(content)
        if verdict is not None:
            assert str(verdict)
            kept.append(value)
    return kept


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_wrong_type_is_damage(field: str) -> None:
    texts, numbers, words = ["maybe", ""], [3], [[], ["a"], None]
    sound: dict[str, list[Any]] = {
        **dict.fromkeys(("phase", "cause", "value", "fix"), texts),
        **{name: [*texts, None] for name in ("exception", "op", "module", "parameter", "source")},
        **dict.fromkeys(("sample_ids", "path"), words),
        **{name: [*numbers, None] for name in ("step", "rank")},
        "samples": [[], [1], None],
        "reproducible": [True, None],
        "witness": [{}, {"a": [1]}],
    }
    assert accepted(field) == sound[field]


@pytest.mark.parametrize("part", [*WHOLE.witness, "unknown"])
def test_any_witness_is_said_or_is_damage(part: str) -> None:
    for value in WRONG:
        accepted("witness", ({**WHOLE.witness, part: value},))
    without = {key: value for key, value in WHOLE.witness.items() if key != part}
    assert accepted("witness", (without,)) == [without]  # what is left is said


@pytest.mark.parametrize("content", [None, [], "inf", 3, {}, {"phase": "forward"}, {"phase": "forward", "cause": "x"}])
def test_what_is_no_verdict_is_none(content: object) -> None:
    assert read_verdict(content) is None


def test_a_file_says_why_it_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trouble(content: bytes | None) -> str:
        file = tmp_path / "verdict.json"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError) as raised:
            read_verdict_file(file)
        return str(raised.value).removeprefix(f"{file}: ")

    assert trouble(None) == "missing"
    assert trouble(b"{") == "not a verdict (JSONDecodeError); the file is damaged"
    assert trouble(b"\xff") == "not a verdict (UnicodeDecodeError); the file is damaged"
    assert trouble(b"[" * 200_000) == "not a verdict (nested deeper than 64 lists and objects); the file is damaged"
    assert trouble(b"[]") == "not a verdict; the file is damaged"

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert trouble(b"") == "cannot be read (Permission denied)"
    monkeypatch.undo()
    (tmp_path / "verdict.json").write_text(json.dumps(WHOLE.to_json()))
    assert read_verdict_file(tmp_path / "verdict.json") == WHOLE
