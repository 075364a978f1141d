"""Whole `shadowlab train` commands on the small stages, and what they leave."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import app
from diagnostics.records.lines import read_records
from tests import tiny, warm

BINARY = Path(sys.executable).parent


def command(folders: dict[str, Path], output: Path, name: str, max_steps: int, *assignments: str) -> list[str]:
    """A short run: batch 2, two pictures to judge by."""
    settings = {
        "model.vae": folders["vae"],
        "data.image_size": tiny.SIDE * 8,
        "output_dir": output,
        "train.batch_size": 2,
        "validation.num_samples": 2,
        "validation.num_noises": 1,
        "train.validate_every": 1000,
        "checkpoint.every_steps": 1000,
        "diagnostics.histograms_every": 0,
    }
    words = [str(BINARY / "shadowlab"), "train", "--skip-stages", "--device", "cpu", "--run", name]
    words += ["--max-steps", str(max_steps), "--weights", str(folders["unet"]), "--data", str(folders["data"])]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return words + [word for assignment in assignments for word in ("--set", assignment)]


def run_here(words: list[str]) -> Result:
    """The command in this process, which has torch and diffusers in memory already."""
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    return done


def train_seed_fp16(folder: Path) -> str:
    """The README's first command in an empty folder, in this process; returns what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["train", "--config", "seed-fp16", "--allow-unsafe"]
        patch.setattr(sys, "argv", ["shadowlab", *words])  # which the command that fixes it is made of
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    return done.output


def started(words: list[str], **arguments: Any) -> subprocess.Popen[str]:
    return warm.Process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **arguments)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def records(run: Path) -> list[dict[str, Any]]:
    """Training steps and validations so far."""
    file = run / "metrics.jsonl"
    return [r for r in read_records(file) if r["kind"] in ("train", "validation")] if file.is_file() else []


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [record for record in records(run) if record["kind"] == "train"]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """All that the checkpoint of `step` holds."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return {f"{file.relative_to(folder)}/{key}": t for file in files for key, t in load_file(file).items()}
