"""Every drill's verdict names the place where its fault was put."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from diagnostics import PHASES
from shadowlab.drill.case import Drill, Forecast
from shadowlab.drill.cases import DRILLS
from shadowlab.drill.run import run_drill


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_the_verdict_names_the_injected_place(drill: Drill):
    result = run_drill(drill)
    assert result.passed, f"{result.misses}\n{result.error}"
    json.dumps(result.to_json(), allow_nan=False)

    if drill.forecast is not None:
        assert result.error is not None and result.error.verdict.step is not None
        warning = result.warnings[0]  # an alarm may follow
        lead = result.error.verdict.step + 1 - warning.step
        assert warning.layer == drill.forecast.layer and lead >= 20
        assert abs(warning.predicted_step - result.error.verdict.step - 1) <= lead / 4


@pytest.mark.parametrize(
    ("warned_at", "predicted", "real", "words"),
    [
        (20, 40, 44, []),
        (20, 38, 44, []),
        (20, 37, 44, ["predicted for step 37, off by 7"]),
        (30, 44, 44, ["the warning came 14 steps ahead, not 20"]),
        (None, None, 44, ["no warning that conv will overflow"]),
        (20, 40, None, ["no overflow"]),
    ],
)
def test_a_late_or_wrong_forecast_fails_the_drill(
    warned_at: int | None, predicted: int | None, real: int | None, words: list[str]
):
    assert Forecast("conv").misses(warned_at, predicted, real) == words


def test_drills_cover_the_phases_of_a_step():
    assert len({drill.name for drill in DRILLS}) == len(DRILLS)
    assert {drill.phase for drill in DRILLS} == set(PHASES) - {"unscale", "reduce", "checkpoint"} | {"benign"}


def test_the_command_lists_and_runs():
    listed = CliRunner().invoke(app, ["drill"])
    assert listed.exit_code == 0, listed.output
    assert all(drill.name in listed.output and drill.summary in listed.output for drill in DRILLS)

    one = CliRunner().invoke(app, ["drill", "nan-latent"])
    assert one.exit_code == 0, one.output
    assert "phase data of step 2" in one.output and "diffusers#7563" in one.output

    unknown = CliRunner().invoke(app, ["drill", "no-such-drill"])
    assert unknown.exit_code == 2
    both = CliRunner().invoke(app, ["drill", "nan-latent", "--all"])
    assert both.exit_code == 2


def test_json_is_one_document():
    done = CliRunner().invoke(app, ["drill", "nan-weight", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["passed"] is True
    assert content["drills"][0]["verdict"]["phase"] == "state"
