"""Commands that are refused leave no run folder; commands that are interrupted say how to go on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from shadowlab.errors import InterruptedRunError, UserError
from shadowlab.interruption import signals
from shadowlab.runs import folder as folder_module
from shadowlab.runs.folder import RunFolder
from shadowlab.session import Session
from shadowlab.settings import Config, Request
from shadowlab.stages.result import StageResult
from shadowlab.stages.run import run_stage
from tests import tiny


@pytest.fixture
def words(stage_folder: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The options of small stages below `tmp_path`/runs."""
    monkeypatch.chdir(tmp_path)

    def words(**changes: Any) -> list[str]:
        keys = {
            "data.path": stage_folder["data"],
            "model.weights": stage_folder["unet"],
            "model.vae": stage_folder["vae"],
            "data.image_size": tiny.SIDE * 8,
            "device": "cpu",
        }
        given = keys | {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]

    return words


REFUSED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "missing data": (["train"], {"data__path": "absent/"}),
    "missing data of overfit": (["overfit"], {"data__path": "absent/"}),
    "weights that are none": (["check-forward"], {"model__weights": "."}),
    "weights that are none, in train": (["train"], {"model__weights": "."}),
    "weights that are none, later": (["train", "--skip-stages"], {"model__weights": "."}),
    "a VAE that is none": (["overfit"], {"model__vae": "."}),
    "a pattern that matches nothing": (["train", "--skip-stages"], {"train__trainable": '["nothing.*"]'}),
    "a pattern, through the required stages": (["train"], {"train__trainable": '["nothing.*"]'}),
    "too many samples": (["overfit", "--samples", "999"], {}),
    "no such sample": (["check-forward", "--sample", "absent"], {}),
    "a device that is none": (["train"], {"device": "cuda:77"}),
    "a precision that the device lacks": (["overfit"], {"precision": "tf32"}),
    "an unknown key": (["train"], {"train__steps": 3}),
    "a picture that is none": (
        ["check-forward", "--object", "a.png", "--mask", "a.png", "--theta", "1", "--phi", "1", "--size", "3"],
        {},
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="some refusals are those of a machine without a GPU")
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_leaves_no_folder(words: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    command, changes = REFUSED[name]
    for run in ([], ["--run", "mine"]):
        result = CliRunner().invoke(app, [*command, *run, *words(**changes)])
        assert result.exit_code in (2, 3), (result.output, result.exception)
        assert not (tmp_path / "runs").exists(), [*(tmp_path / "runs").rglob("*")]


def test_what_was_there_before_stays(words: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "other").mkdir()
    result = CliRunner().invoke(app, ["overfit", "--run", "mine", *words(data__path="absent/")])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["overfit", "--run", "new", *words(data__path="absent/")])
    assert result.exit_code == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine", "other"]


def test_a_full_disk_leaves_no_half_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "_write_json", full)
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(Config(output_dir=str(tmp_path / "a" / "runs")), "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["a step", "a result", "a checkpoint", "an incident", "a stage before"])
def test_nothing_that_was_done_is_thrown_away(tmp_path: Path, what: str) -> None:
    run = RunFolder.create(Config(output_dir=str(tmp_path)), "run")
    if what == "a step":
        run.metrics.write_text('{"kind": "header"}\n{"kind": "train", "step": 1}\n')
    elif what == "a result":
        (run.path / "stages.json").write_text("{}")
    else:
        place = {"a checkpoint": "checkpoints/step-00000001", "an incident": "incidents/step-1"}
        (run.path / place.get(what, "required/overfit")).mkdir(parents=True)
    assert not run.discard() and run.path.is_dir()


def test_a_beginning_is_thrown_away(tmp_path: Path) -> None:
    run = RunFolder.create(Config(output_dir=str(tmp_path / "runs")), "run")
    run.metrics.write_text('{"kind": "header"}\n')
    (run.samples / "input.png").write_bytes(b"png")
    assert not RunFolder.reopen(Config(output_dir=str(tmp_path / "runs")), "run").discard()  # another command's
    assert run.discard() and not (tmp_path / "runs").exists()


def test_a_run_that_is_starting_keeps_its_folder_and_its_configuration(tmp_path: Path) -> None:
    """It has recorded nothing yet when another command asks for the same name."""
    config = Config(output_dir=str(tmp_path))
    run = RunFolder.create(config, "run")
    with run.claim():
        with pytest.raises(UserError, match="another process works on this run"):
            RunFolder.create(config.model_copy(update={"seed": 5}), "run")
        assert run.saved_config() == config
        assert RunFolder.create_beside(config, "run").path == tmp_path / "run-2"
        assert not RunFolder(run.path, run.made).discard()  # of a command that made it in the same moment
        assert run.saved_config() == config
    assert run.discard() and not run.path.exists()


def test_a_start_that_was_killed_may_be_repeated(tmp_path: Path) -> None:
    config = Config(output_dir=str(tmp_path))
    run = RunFolder.create(config, "run")
    (run.path / ".environment.json.4242.tmp").write_text("{")
    assert RunFolder.create(config, "run") == run
    (run.path / ".notes").touch()
    with pytest.raises(UserError, match="holds results already"):
        RunFolder.create(config, "run")


def test_overfit_that_is_interrupted_offers_no_resume(words: Callable[..., list[str]], tmp_path: Path) -> None:
    """It has no --resume. Before the first step, nothing is left to speak of."""

    def stage(session: Session) -> StageResult:
        session.run.metrics.write_text('{"kind": "overfit", "step": 1, "loss": 1.0}\n')
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
        raise AssertionError

    request = Request(assignments=tuple(words()[1::2]), run="mine")
    with signals.heard(), pytest.raises(InterruptedRunError) as caught:
        run_stage("overfit", request, stage)
    text = str(caught.value)
    assert "--resume" not in text and "start it again under another --run" in text and "runs/mine" in text
    assert not caught.value.saved
    with signals.heard():  # a process of its own
        result = CliRunner().invoke(app, ["overfit", "--run", "mine", *words()])
    assert result.exit_code == 2 and "choose another --run" in result.output and "--resume" not in result.output


def test_a_folder_of_a_training_offers_to_go_on(tmp_path: Path) -> None:
    run = RunFolder.create(Config(output_dir=str(tmp_path)), "run")
    environment = json.loads((run.path / "environment.json").read_text())
    (run.path / "environment.json").write_text(json.dumps(environment | {"command": ["train", "--run", "run"]}))
    (run.path / "stages.json").write_text("{}")
    with pytest.raises(UserError, match="choose another --run, or continue training with --resume"):
        RunFolder.create(Config(output_dir=str(tmp_path)), "run")
