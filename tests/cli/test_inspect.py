"""`shadowlab inspect` as a user meets it."""

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.views.records import step, write_run

LAYERS = {"conv_in": 1.0, "mid_block.attention": 40.0, "conv_out": 2.0}


@pytest.fixture(autouse=True)
def _two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    header = {"kind": "header", "stage": "train", "precision": "fp16"}
    sound = [header, *(step(i, LAYERS) for i in (1, 2, 4))]
    write_run(Path("runs/sound"), sound, cut=True)
    hurt = step(4, LAYERS | {"mid_block.attention": math.nan})
    hurt["layers"]["conv_out"]["activation"]["headroom_bits"] = 0.5
    incident = {"kind": "incident", "step": 5, "verdict": {}}
    write_run(Path("runs/hurt"), [header, step(1, LAYERS), step(2, LAYERS), hurt, incident])


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]


def error_line(result: Result) -> str:
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and "Traceback" not in result.output
    return line.removeprefix("error: ")


def test_the_layers_with_the_least_headroom_at_the_last_step() -> None:
    result = shadowlab("hurt", "--top", "2")
    assert "hurt: train in fp16, 3 steps, the last 4, 3 with statistics (1 to 4); step 5 met NaN" in result.stdout
    assert "activation.headroom_bits at step 4, 2 of 3 layers" in result.stdout
    assert [row[:4] for row in rows(result)] == [["3", "conv_out", "0.5", "██▁"], ["1", "conv_in", "100", "▄▄▄"]]


def test_a_headroom_that_says_nothing_is_not_what_layers_are_sorted_by() -> None:
    """float32's is above a hundred bits in every layer."""
    part = {"norm": 1.0, "num_nonfinite": 0, "headroom_bits": 124.0}
    layers = {name: {"activation": part, "gradient": part | {"norm": n}} for name, n in (("a", 1.0), ("b", 9.0))}
    record = {"kind": "train", "step": 1, "loss": 1.0, "layers": layers}
    write_run(Path("runs/wide"), [record, record | {"step": 2, "tripped": True}])
    result = shadowlab("wide")
    assert "gradient.norm at step 2" in result.stdout and "no update was made" in " ".join(result.stdout.split())
    assert [row[1] for row in rows(result)] == ["b", "a"]
    without = {name: {"activation": part} for name in layers}
    write_run(Path("runs/forward"), [record | {"layers": without}])
    assert "activation.norm at step 1" in shadowlab("forward").stdout


def test_nan_is_the_first_row() -> None:
    found = rows(shadowlab("runs/hurt", "--by", "norm"))
    assert found[0][:4] == ["2", "mid_block.attention", "nan", "▄▄N"]
    assert [row[1] for row in found[1:]] == ["conv_out", "conv_in"]
    assert rows(shadowlab("hurt", "--by", "norm", "--step", "2", "--ascending"))[0][1] == "conv_in"


def test_a_half_written_run_and_parameters() -> None:
    [row] = rows(shadowlab("runs/sound/metrics.jsonl", "--by", "update_ratio", "--layers", "mid*"))
    assert row[:3] == ["2", "mid_block.attention.weight", "0.04"]


def test_json_holds_what_the_table_leaves_out() -> None:
    result = shadowlab("hurt", "--by", "max_abs", "--json")
    document = json.loads(result.stdout)
    assert (document["statistic"], document["step"], document["num_ranked"]) == ("activation.max_abs", 4, 3)
    first = document["rows"][0]
    assert (first["name"], first["value"], first["curve"]) == (
        "mid_block.attention",
        "NaN",
        [[1, 20], [2, 20], [4, "NaN"]],
    )
    assert first["gradient"]["std"] == 1.0
    assert "activation.max_abs at step 4" in result.stderr


def test_one_layer_over_time() -> None:
    result = shadowlab("hurt", "--by", "norm", "--over-time", "attention")
    assert "activation.norm of mid_block.attention\n  ▄▄N\n" in result.stdout
    for line in (
        "first  40 at step 1",
        "last   nan at step 4",
        "max    40 at step 1",
        "1 of 3 not finite, the first at",
    ):
        assert line in result.stdout
    document = json.loads(shadowlab("hurt", "--by", "norm", "--over-time", "attention", "--json").stdout)
    assert document["over_time"][0]["first_nonfinite"] == 4


def test_where_two_runs_part() -> None:
    result = shadowlab("sound", "--against", "hurt")
    assert "step 4, activation.norm of mid_block.attention: 40 and nan (not comparable)" in result.stdout
    assert "over 3 steps that both measured" in result.stdout
    assert "activation.norm at step 4: 1 of 3 layers differ beyond 0.0001, the largest" in result.stdout
    assert rows(result) == [["2", "mid_block.attention", "40", "nan", "not", "comparable"]]
    document = json.loads(shadowlab("sound", "--against", "hurt", "--json").stdout)
    assert document["first_difference"]["step"] == 4 and document["first_difference"]["relative"] == "Infinity"
    assert document["num_beyond"] == 1
    same = shadowlab("sound", "--against", "hurt", "--step", "2")
    assert "activation.norm at step 2: 3 layers, all equal" in same.stdout
    assert "no difference beyond 0.0001" in shadowlab("sound", "--against", "runs/sound").stdout


def test_differences_within_the_tolerance_are_listed_as_such() -> None:
    write_run(Path("runs/near"), [step(i, LAYERS | {"conv_out": 2.00001}) for i in (1, 2, 4)])
    result = shadowlab("sound", "--against", "near")
    assert "no difference beyond 0.0001" in result.stdout
    assert "activation.norm at step 4: 0 of 3 layers differ beyond 0.0001, the largest" in result.stdout
    assert [row[-2:] for row in rows(result)] == [["5.0e-04", "%"]]
    assert "1 of 3 layers differ beyond 1e-06" in shadowlab("sound", "--against", "near", "--rtol", "1e-6").stdout


def test_layers_of_one_run_alone_are_named() -> None:
    write_run(Path("runs/new"), [step(1, {"conv_in": 1.0, "added": 1.0})])
    text = shadowlab("sound", "--against", "new").stdout
    assert "in sound alone: 2: mid_block.attention, conv_out" in text
    assert "in new alone: 1: added" in text


def test_an_overfit_of_one_step_in_a_narrow_terminal(tmp_path: Path) -> None:
    """40 columns: curves and the other statistics are left out, a name is whole and no line is longer."""
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out"
    write_run(tmp_path / "elsewhere", [step(1, {"mid_block.attention.to_out": 1.0, name: 2.0}, kind="overfit")])
    narrow = {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm"}
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "elsewhere")], env=narrow)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in result.stdout.splitlines()]
    assert "overfit, 1 step, the last 1, 1 with statistics" in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 40
    assert "mid_block.attention.to_out" in result.stdout and name in "".join("".join(lines).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["snd"], ["snd: no such run, here or in runs/", "did you mean `sound`?"]),
        (["."], ["not a run folder (no metrics.jsonl)"]),
        (["sound", "--against", "zzzzzz"], ["zzzzzz: no such run", "`shadowlab runs`"]),
        (["sound", "--by", "nrm"], ["--by nrm", "activation.norm", "parameter.update_ratio"]),
        (["sound", "--step", "3"], ["--step 3", "the nearest that has is 2"]),
        (["sound", "--layers", "nothing*"], ["--layers nothing*: matches none of 3 layers"]),
        (["sound", "--over-time", "conv", "--by", "norm"], ["means 2 layers", "conv_in, conv_out"]),
        (["sound", "--over-time", "conv_in", "--step", "2"], ["--over-time", "leave --step out"]),
        (["sound", "--over-time", "conv_in", "--top", "15"], ["--over-time", "leave --top out"]),
        (["sound", "--over-time", "conv_in", "--against", "hurt", "--rtol", "1"], ["--over-time", "leave --rtol out"]),
        (["sound", "--rtol", "1e-4"], ["--rtol", "--against"]),
        (["sound", "--against", "hurt", "--ascending"], ["--against", "--ascending"]),
        (["sound", "--against", "hurt", "--rtol", "nan"], ["--rtol nan"]),
        (["unmeasured"], ["no step has statistics", "diagnostics.statistics_every"]),
        (["begun"], ["begun: has no metrics.jsonl"]),
        (["fallen"], ["holds no training step", "step 1 met NaN or Inf: shadowlab why runs/fallen"]),
        (["damaged"], ["damaged/metrics.jsonl:1: not a JSON record"]),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], words: list[str]) -> None:
    write_run(Path("runs/unmeasured"), [{"kind": "train", "step": 1, "loss": 1.0}])
    write_run(Path("runs/fallen"), [{"kind": "incident", "step": 1, "verdict": {}}])
    write_run(Path("runs/begun"), [])
    Path("runs/begun/metrics.jsonl").unlink()
    write_run(Path("runs/damaged"), [])
    Path("runs/damaged/metrics.jsonl").write_text("{oops}\n{}\n")
    line = error_line(shadowlab(*arguments))
    for word in words:
        assert word in line
