"""`shadowlab data encode` as a user meets it, and `train` on what it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner, Result

from cli.main import app
from shadowlab.models.vae import ImageVae


def shadowlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_it_fills_a_folder_and_says_how_to_use_it(options: list[str]) -> None:
    done = shadowlab("data", "encode", "--out", "latents", *options)
    assert done.exit_code == 0, done.output
    assert "16 latents of 8 samples in latents (0.0 MiB): 16 encoded, 0 kept" in done.stdout
    assert "train on them: --set data.latents=latents" in done.stdout
    again = shadowlab("data", "encode", "--set", "data.latents=latents", "--json", *options)
    report = json.loads(again.stdout)
    assert report["passed"] is True and report["out"] == "latents"
    assert (report["num_samples"], report["num_kept"], report["num_encoded"]) == (8, 16, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["say where the latents go", "--out DIR"]),
        (["--out", "x", "--data", "absent"], ["absent: no such data set"]),
        (["--out", "x", "--run", "name"], ["No such option: --run"]),
        (["--out", "x", "--set", "model.vae=./nowhere"], ["nowhere", "no such folder"]),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: list[str]) -> None:
    done = shadowlab("data", "encode", *arguments)
    assert done.exit_code == 2
    for word in words:
        assert word in done.output
    assert not Path("x").exists()


def test_a_latent_that_is_not_finite_is_exit_code_1(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = ImageVae.encode_grey
    monkeypatch.setattr(ImageVae, "encode_grey", lambda self, shadow: original(self, shadow) * float("inf"))
    done = shadowlab("data", "encode", "--out", "latents", *options)
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: sample img_00000: ") and "not finite" in line
    assert not [path for path in Path("latents").rglob("*") if path.is_file()]


def test_ctrl_c_says_what_is_kept(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = ImageVae.encode_grey, []

    def interrupted(self: Any, shadow: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, shadow)

    with monkeypatch.context() as patch:
        patch.setattr(ImageVae, "encode_grey", interrupted)
        done = shadowlab("data", "encode", "--out", "latents", *options)
    assert done.exit_code == 130
    assert done.stderr == "interrupted: what is done is kept; go on with the same command\n"
    assert "12 encoded, 4 kept" in shadowlab("data", "encode", "--out", "latents", *options).stdout


def test_train_looks_for_the_latents_before_the_stages(options: list[str]) -> None:
    words = ("--set", "data.latents=latents")
    done = shadowlab("train", *options, *words)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "latents/index.json: no such file: no latent cache" in line
    assert not Path("runs").exists()
    fix = line.split("; run: shadowlab ")[1].split()
    assert shadowlab(*fix, "--device", "cpu").exit_code == 0  # the command that the error names
    few = {"validation.num_samples": 2, "validation.num_noises": 1, "train.batch_size": 2, "train.log_every": 1}
    settings = [word for key, value in few.items() for word in ("--set", f"{key}={value}")]
    done = shadowlab("train", "--skip-stages", "--max-steps", "2", *options, *words, *settings)
    assert done.exit_code == 0, done.output
    assert "steps 0 to 2, no VAE in the step" in done.stdout
    assert "  data wait " in next(line for line in done.stdout.splitlines() if line.startswith("step 2/2"))
