"""--quiet on real commands."""

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from cli.main import app
from shadowlab.settings import Request


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_stage_that_passes_says_so_alone(options: list[str]) -> None:
    words = ["--max-steps", "1", "--set", "train.batch_size=2", "--set", "validation.num_samples=2"]
    done = shadowlab("train", "--quiet", "--skip-stages", "--run", "short", *words, *options)
    assert done.exit_code == 0 and done.stderr == ""
    warning, last = done.stdout.splitlines()
    assert warning.startswith("warning: --skip-stages")
    assert last == "train: passed (runs/short)"
    log = Path("runs/short/log.txt").read_text()
    assert "validation loss" in log and "checkpoints in runs/short/checkpoints" in log and last in log


def test_a_stage_that_fails_says_why_alone(options: list[str]) -> None:
    """An untrained VAE; log.txt has the tables."""
    done = shadowlab("check-forward", "--quiet", "--run", "proof", *options)
    assert done.exit_code == 1 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: VAE gives the shadow map back")
    log = Path("runs/proof/log.txt").read_text()
    assert "path of a sample through the model, measured" in log and "building" in log


def test_quiet_with_json(options: list[str]) -> None:
    done = shadowlab("data", "encode", "--quiet", "--json", "--out", "latents", *options)
    assert json.loads(done.stdout)["num_encoded"] == 16
    [line] = done.stderr.splitlines()
    assert line.startswith("16 latents of 8 samples in latents")


def test_errors_are_printed() -> None:
    done = shadowlab("train", "--quiet", "--data", "absent")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: absent: no such data set")


def test_processes_are_started_with_it() -> None:
    request = Request(options={"seed": 3}, as_json=True, quiet=True)
    assert request.words() == ["--set", "seed=3", "--quiet", "--json"]


def test_a_plan_is_its_table() -> None:
    done = shadowlab("plan", "--quiet")
    assert done.exit_code == 2 and "No such option: --quiet" in done.output
