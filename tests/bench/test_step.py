"""bench step runs and says what it ran. Times are not judged here."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.bench import step
from shadowlab.bench.rounds import Rounds, row_lines
from tests import tiny


def test_a_miniature_gives_every_row(hub_folder):
    options = {name: words for name, words in step.OPTIONS.items() if name != "torch.compile"}
    report = step.measure_step(
        batch=2, size=tiny.SIDE, num_rounds=2, make_unet=lambda: tiny.shadow_unet(hub_folder), options=options
    )
    names = ["BARE", "CONTROL", "BETWEEN", "STATISTICS", "HISTOGRAMS"]
    assert [row.name for row in report.rows] == [
        *(getattr(step, name) for name in names),
        "harness, cadence of tiny",
        "harness, cadence of sdxl",
    ]
    assert report.row(step.BARE).ratio == 1.0
    assert [row.name for row in report.options] == list(options)
    assert all(row.ratio is not None for row in report.options)
    assert report.encoding.saved < 1
    assert json.loads(json.dumps(report.to_json()))["num_rounds"] == 2
    table = step.format_table(report)
    assert all(row.name in table for row in [*report.rows, *report.options])


def test_both_loops_train_the_same_model(hub_folder, tmp_path):
    """Each moves every weight and its average, and clips; the harness leaves its records."""
    config = tiny.config_of(hub_folder, f"output_dir={tmp_path}", "optimizer.max_grad_norm=1e-3")
    loops = step.Loops(config, tiny.shadow_unet(hub_folder), 2, tiny.SIDE)
    for loop in (loops.bare, loops.with_histograms):
        before = tiny.weights_of(loops.trainee)
        averages = [average.clone() for average in loops.trainee.ema.shadow_params]
        loop()
        after = tiny.weights_of(loops.trainee)
        assert not [name for name in before if before[name].equal(after[name])]
        assert not [a for a, b in zip(averages, loops.trainee.ema.shadow_params, strict=True) if a.equal(b)]
        norm = sum(float(p.grad.square().sum()) for p in loops.trainee.unet.parameters()) ** 0.5
        assert norm == pytest.approx(1e-3, rel=1e-2)
    loops.close()
    [record] = [json.loads(line) for line in next(tmp_path.glob("*/metrics.jsonl")).read_text().splitlines()]
    assert {"layers", "parameters", "histograms"} <= record.keys()


def test_rounds_are_interleaved_and_mixed():
    """Every variant runs twice a round, one call in two is timed, and who comes first rotates."""
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    rounds = Rounds(calls, 3, step.torch.device("cpu"))
    assert "".join(order) == "aabbcc" + "bbccaa" + "ccaabb"
    rounds.wall = {"a": [1.0, 2.0, 4.0], "b": [1.5, 2.0, 8.0], "c": [10.0, 20.0, 40.0]}
    rounds.mix("d", {"a": 0.9, "c": 0.1})
    assert rounds.row("b", "a").ratio == 1.5
    assert (rounds.row("d", "a").ratio, rounds.row("d", "a").low) == (pytest.approx(1.9), pytest.approx(1.9))
    assert "1.900" in row_lines([rounds.row("d", "a")])[1]


def test_an_option_that_is_none():
    result = CliRunner().invoke(app, ["bench", "step", "--option", "faster"])
    assert result.exit_code == 2
    assert "--option faster: there is none; choose of channels_last, AdamW without fusion" in result.output
