"""A run to look at, and TensorBoard on it, as a user has them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


def make_run(stage_folder: dict[str, Path], runs: Path) -> Path:
    """Two steps, then a resume to four."""
    settings = {
        "model.vae": stage_folder["vae"],
        "data.image_size": 32,
        "output_dir": runs,
        "train.batch_size": 2,
        "validation.num_samples": 2,
        "diagnostics.statistics_every": 1,
        "diagnostics.histograms_every": 2,
    }
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    source = ["--weights", str(stage_folder["unet"]), "--data", str(stage_folder["data"])]
    command = ["train", "--run", "board", "--skip-stages", *source, *assignments]
    first = CliRunner().invoke(app, [*command, "--max-steps", "2"])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, [*command, "--max-steps", "4", "--resume"])
    assert second.exit_code == 0, second.output
    return runs / "board"


@contextmanager
def serving(run: Path, *options: str) -> Iterator[str]:
    """Address of `shadowlab tensorboard`; ended by Ctrl-C, to which it must answer with 0."""
    command = [sys.executable, "-m", "cli.main", "tensorboard", str(run), "--port", "0", *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert server.stdout is not None
    said = []
    try:
        for line in server.stdout:
            said.append(line)
            if "http://" in line:
                yield line[line.index("http://") :].split()[0].rstrip("/")
                break
        else:
            pytest.fail(f"no address: {said}")
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
        assert server.returncode == 0
    finally:
        server.kill()
