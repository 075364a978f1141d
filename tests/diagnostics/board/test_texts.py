"""Words in TensorBoard: an incident reads from birth to sink, names keep their letters."""

from dataclasses import replace
from typing import Any

import pytest

from diagnostics.board.texts import text_of
from diagnostics.health import Finding
from diagnostics.verdict import Verdict


def test_an_incident_shows_the_chain_the_operands_the_line_and_the_fix() -> None:
    verdict = Verdict(
        "forward",
        "invalid",
        "out_of_domain",
        op="log",
        module="mid_block.resnets.0",
        source="/home/me/model.py:12",
        samples=(1,),
        sample_ids=("obj_7|a",),
        witness={"operands": {"self": -0.5}, "dtype": "float32", "index": [3], "shape": [8]},
        path=("log", "mul", "loss"),
        fix="keep the argument above 0",
        step=4,
    )
    tag, text = text_of({"kind": "incident", "step": 5, "verdict": verdict.to_json(), "state": None}) or ("", "")
    assert tag == "incident"
    assert "### nan was born in log, phase forward of step 5" in text
    assert "- **birth → sink**: `log` → `mul` → `loss`" in text
    assert r"- **operands**: self = -0.5 (at \[3] of \[8])" in text
    assert "- **source**: /home/me/model.py:12" in text
    assert "- **fix**: keep the argument above 0" in text
    assert r"obj\_7\|a" in text
    assert r"- **module**: mid\_block.resnets.0" in text


@pytest.mark.parametrize("verdict", [None, {}, [], "x", {"phase": "forward"}])
def test_an_incident_whose_verdict_is_damaged_is_still_reported(verdict: Any) -> None:
    text = ("incident", "### an incident whose verdict cannot be read")
    assert text_of({"kind": "incident", "step": 5, "verdict": verdict}) == text


def test_a_newer_version_may_say_more_of_an_incident() -> None:
    verdict = Verdict("forward", "overflow", "overflow", op="mm").to_json() | {"weather": "rain"}
    _, text = text_of({"kind": "incident", "step": 5, "verdict": verdict}) or ("", "")
    assert "nan was born in mm" in text and "rain" not in text


def test_findings_are_a_table() -> None:
    """A layer and what of it, a parameter, the run as a whole."""
    finding = Finding("non-finite", "alarm", 3, "0 of 64", "x")
    findings = [
        replace(finding, layer="a.b_1", part="gradient").to_json(),
        replace(finding, parameter="a.b.weight").to_json(),
        replace(finding, step=None).to_json(),
    ]
    tag, text = text_of({"kind": "health", "step": 3, "findings": findings}) or ("", "")
    assert tag == "health"
    assert text.splitlines() == [
        "| severity | rule | where | part | step | evidence | advice |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        r"| alarm | non-finite | a.b\_1 | gradient | 3 | 0 of 64 | x |",
        "| alarm | non-finite | a.b.weight |  | 3 | 0 of 64 | x |",
        "| alarm | non-finite |  |  |  | 0 of 64 | x |",
    ]


def test_a_stage_says_how_it_ended() -> None:
    record = {"kind": "stage", "stage": "overfit", "step": 9, "passed": False, "message": "R^2 is\nlow"}
    tag, text = text_of(record | {"summary": {"r2": 0.25, "criterion": {"r2": 0.95}}}) or ("", "")
    assert tag == "stage/overfit"
    assert text.startswith("### overfit: **failed**\n\n    R^2 is\n    low\n\n")
    assert "| `r2` | 0.25 |" in text


def test_numbers_are_no_text() -> None:
    for record in ({"kind": "train", "step": 1}, {"kind": "header"}, {"kind": "health", "findings": []}):
        assert text_of(record) is None
