"""What an incident holds besides its verdict: operands by name, how a denominator became 0, what to type, why."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowlab.views.page.page import build_page
from shadowlab.views.page.run_view import RunView
from tests.views.page.run_folders import HOSTILE, VERDICT, add_incident, make_run, step

WITNESS = VERDICT["witness"] | {
    "names": {"self": "conv.weight", "other": "denom"},
    "roles": {"other": "denominator"},
    "expression": "param.addcdiv_(exp_avg, denom)",
    "expression_at": "/usr/lib/python3/site-packages/torch/optim/adam.py:546",
    "why_zero": f"conv.weight.exp_avg_sq rounds to 0 in float16 {HOSTILE}",
}
REMEDY = {
    "command": "shadowlab train --config seed-fp16 --precision bf16",
    "change": "--precision bf16",
    "why": "bfloat16 has float32's range",
    "warned": [{"stage": "check-forward", "run": "runs/a-check-forward", "text": f"eps is 0 in float16 {HOSTILE}"}],
}
WHY = {
    "device": "cpu",
    "from": "the state before the step",
    "conclusion": f"a matter of precision {HOSTILE}",
    "counterfactuals": [
        {"name": "float32", "result": "finite", "meaning": "the same numbers fit float32", "detail": "loss 1.2"},
        {"name": "eps 1e-6", "result": "same fault", "meaning": "eps 1e-6 does not help"},
        3,
    ],
    "left_out": [{"kind": "scale", "reason": "fp16-pure has no loss scale"}],
}


def page(tmp_path: Path, **files: Any) -> tuple[str, RunView]:
    run = make_run(tmp_path / "run", [step(6)])
    folder = add_incident(run, VERDICT | {"witness": WITNESS})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    view = RunView.read(run)
    return build_page(view), view


def test_the_incident_says_what_was_zero_why_what_to_type_and_what_had_warned(tmp_path: Path) -> None:
    text, _ = page(tmp_path, remedy=REMEDY, why=WHY)
    for words in (
        "denominator denom",
        "conv.weight",
        "conv.weight.exp_avg_sq rounds to 0 in float16",
        "param.addcdiv_(exp_avg, denom)",
        "torch/optim/adam.py:546",
        "shadowlab train --config seed-fp16 --precision bf16",
        "check-forward had warned of it",
        "eps is 0 in float16",
        "a matter of precision",
        "the same numbers fit float32",
        "left out: scale: fp16-pure has no loss scale",
    ):
        assert words in text, words
    assert HOSTILE not in text


def test_an_incident_of_an_earlier_version_has_no_gaps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step(6)])
    add_incident(run)
    view = RunView.read(run)
    text = build_page(view)
    for words in ("Why it is 0", "had warned", "What would have helped", "In the code", "None"):
        assert words not in text, words
    assert "overflow" in text and view.incidents[0].problems == ()


@pytest.mark.parametrize("why", ["[", "[1]", '"text"', "[" * 100_000, "{}", '{"counterfactuals": 3, "left_out": {}}'])
def test_a_damaged_answer_is_named_and_the_rest_is_shown(tmp_path: Path, why: str) -> None:
    text, view = page(tmp_path, why=why, remedy="{")
    assert "denominator denom" in text
    assert bool(view.incidents[0].problems) == (not why.startswith("{"))
    assert all("why.json" in problem for problem in view.incidents[0].problems)
