"""What a user calls a run by: a path, a name, `latest`."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.errors import UserError
from shadowlab.runs.folder import RunFolder
from shadowlab.runs.lookup import find_run, run_places, run_to_resume
from shadowlab.runs.saved import resume_point
from shadowlab.settings.files import load_config
from shadowlab.stages.why.why import find_incident
from tests.views.page.run_folders import add_incident
from tests.views.records import step, write_run


def run(name: str, age: int) -> Path:
    """A run below runs/ that was worked at so many seconds before a fixed time."""
    place = write_run(Path("runs", name), [step(1, {"conv_in": 1.0})])
    add_incident(place)
    for file in (*place.iterdir(), place):
        os.utime(file, (1e9 - age, 1e9 - age))
    return place


@pytest.fixture
def _runs() -> None:
    """The newest stands neither first nor last by name, and was not made last."""
    run("a", 30), run("m", 10), run("z", 20)
    Path("runs/notes").mkdir()


@pytest.mark.usefixtures("_runs")
def test_latest_is_the_run_that_was_worked_at_last() -> None:
    assert find_run("latest").path == Path("runs/m")
    assert find_incident("latest").parents[1] == Path("runs/m")
    (Path("runs/a") / "log.txt").write_text("resumed")
    assert find_run("latest").path == Path("runs/a")
    Path("runs/m/reports").mkdir()  # a page is no work
    assert find_run("latest").path == Path("runs/a")


@pytest.mark.usefixtures("_runs")
def test_why_passes_over_newer_runs_that_met_nothing() -> None:
    """The stage that failed has a folder of its own, next to that of the training that could not begin."""
    write_run(Path("runs/healthy"), [step(1, {"conv_in": 1.0})])
    assert find_run("latest").path == Path("runs/healthy")
    assert find_incident("latest").parents[1] == Path("runs/m")


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize("command", ["why --no-counterfactuals", "health", "inspect", "report", "inspect z --against"])
def test_latest_works_wherever_a_run_is_asked_for(command: str) -> None:
    by_name, latest = (CliRunner().invoke(app, [*command.split(), name]) for name in ("m", "latest"))
    assert (latest.exit_code, latest.output.replace("latest", "m")) == (by_name.exit_code, by_name.output)
    assert "error" not in latest.output and (command.startswith("inspect") or "runs/m" in latest.output)


@pytest.mark.usefixtures("_runs")
def test_a_folder_called_latest_is_named_by_its_path() -> None:
    write_run(Path("latest"), [step(1, {"conv_in": 1.0})])
    write_run(Path("runs/latest"), [step(1, {"conv_in": 1.0})])
    for place in (*Path("runs/latest").iterdir(), Path("runs/latest")):
        os.utime(place, (1, 1))
    assert find_run("latest").path == Path("runs/m")
    assert find_run("./latest").path == Path("latest")
    assert find_run("runs/latest").path == Path("runs/latest")
    assert run_places("./latest")[0] == Path("latest")


def test_without_a_run_there_is_no_latest() -> None:
    with pytest.raises(UserError, match=r"latest: there is no run in runs/; \./latest is a folder of that name"):
        find_run("latest")
    assert (
        CliRunner().invoke(app, ["tensorboard", "latest"]).output.startswith("error: latest: there is no run in runs/")
    )


@pytest.mark.usefixtures("_runs")
def test_a_folder_that_is_closed_is_not_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, as a rule."""
    stat = Path.stat

    def refusing(self: Path, **named: bool) -> os.stat_result:
        if self.parts[:2] == ("runs", "m") and len(self.parts) > 2:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **named)

    monkeypatch.setattr(Path, "stat", refusing)
    assert find_run("latest").path == Path("runs/z")


def test_what_resume_goes_on_with() -> None:
    config = load_config()
    for age, name in enumerate(("tiny-train-2", "sdxl-train-1", "tiny-train-1")):
        folder = RunFolder.create(config, name)
        checkpoint = folder.checkpoints / "step-00000001"
        checkpoint.mkdir()
        (checkpoint / "COMPLETE").write_text("{}")
        for file in (*folder.path.iterdir(), checkpoint / "COMPLETE"):
            os.utime(file, (1e9 - age, 1e9 - age))
    RunFolder.create(config, "tiny-overfit-1")  # newer, and without a checkpoint
    assert run_to_resume(config, "latest", "sdxl") == "tiny-train-2"
    assert run_to_resume(config, None, "sdxl") == "sdxl-train-1"
    assert run_to_resume(config, "runs/tiny-train-1", "tiny") == "tiny-train-1"
    assert run_to_resume(config, "tiny-train-1", "tiny") == "tiny-train-1"
    assert run_to_resume(config, "./latest", "tiny") == "latest"
    assert run_to_resume(config, "elsewhere/tiny-train-1", "tiny") == "elsewhere/tiny-train-1"  # which is refused then


def test_no_run_can_be_called_latest() -> None:
    result = CliRunner().invoke(app, ["overfit", "--run", "latest"])
    assert result.exit_code == 2 and not Path("runs/latest").exists()
    assert "--run latest: means the newest run; choose another name" in result.output
    with pytest.raises(UserError, match="latest: there is no run with a checkpoint in runs/"):
        run_to_resume(load_config(), "latest", "tiny")


@pytest.mark.usefixtures("_runs")
def test_stages_inside_a_training_are_found_from_outside() -> None:
    """By their way, by `latest`, and by `why` on the training: the incident is theirs."""
    place = run("z/required/overfit", 5)
    write_run(Path("runs/z/required/check-forward"), [step(1, {"conv_in": 1.0})])
    assert find_run("z/required/overfit").path == Path("runs/z/required/overfit")
    assert find_run("latest").path == Path("runs/z")  # the command that was at work last
    assert find_incident("latest").parents[1] == place
    shutil.rmtree("runs/z/incidents")
    assert find_incident("z").parents[1] == place


def _checkpoint(run: RunFolder, name: str, age: int) -> None:
    marker = run.checkpoints / name / "COMPLETE"
    marker.parent.mkdir()
    marker.write_text("{}")
    for file in (*run.path.iterdir(), marker):
        os.utime(file, (1e9 - age, 1e9 - age))


@pytest.mark.parametrize("name", ["step-00000002-best", "step-2", "step-00000002 (copy)", "step-notes"])
def test_a_copy_next_to_the_checkpoints_makes_no_run_the_one_to_resume(name: str) -> None:
    config = load_config()
    saved, other = RunFolder.create(config, "tiny-train-1"), RunFolder.create(config, "tiny-train-2")
    _checkpoint(saved, "step-00000001", 9)
    _checkpoint(other, name, 0)
    assert run_to_resume(config, None, "tiny") == run_to_resume(config, "latest", "tiny") == "tiny-train-1"
    assert resume_point(other.checkpoints) == "nothing is saved yet, a resume starts at step 0"
    shutil.rmtree(saved.path)
    for asked in (None, "latest"):
        with pytest.raises(UserError, match="no run .*with a checkpoint"):
            run_to_resume(config, asked, "tiny")


@pytest.mark.usefixtures("_runs")
def test_a_run_that_goes_meanwhile_is_not_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is refused removes its folder; its names were there a moment before."""
    exists, asked = Path.exists, []

    def going(self: Path) -> bool:
        was_there = exists(self)
        if self.parts[:2] == ("runs", "m") and was_there and len(self.parts) > 2:
            asked.append(self)
            if len(asked) == 2:  # the first time, whether it is a run
                shutil.rmtree("runs/m")
        return was_there

    monkeypatch.setattr(Path, "exists", going)
    assert find_run("latest").path == Path("runs/z") and len(asked) == 2


def test_evidence_of_a_stage_that_was_killed_outlives_the_next_try() -> None:
    config = load_config()
    run = RunFolder.create(config, "tiny-train-1")
    first = run.create_required(config, "overfit")
    assert run.create_required(config, "overfit").path == first.path  # it came to nothing
    add_incident(first.path)
    second = run.create_required(config, "overfit")
    assert second.path.name == "overfit-2"
    assert find_incident("tiny-train-1").parents[1] == first.path
