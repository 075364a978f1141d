"""Two processes under torchrun (gloo) do what one process does with twice the batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny


def losses(run: Path) -> list[tuple[int, float, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records if r["kind"] == "train"]


@pytest.mark.slow
def test_two_processes_follow_one(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    settings = {
        "model.vae": stage_folder["vae"],
        "data.image_size": tiny.SIDE * 8,
        "output_dir": tmp_path,
        "validation.num_samples": 2,
        "checkpoint.every_steps": 3,
    }
    words = ["train", "--skip-stages", "--device", "cpu", "--max-steps", "3", "--json"]
    words += ["--weights", str(stage_folder["unet"]), "--data", str(stage_folder["data"])]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    binary = Path(sys.executable).parent
    alone = [str(binary / "shadowlab"), *words, "--run", "one", "--set", "train.batch_size=4"]
    launch = [str(binary / "torchrun"), "--nproc-per-node", "2", "--master-port", "29517", "--no-python", "--"]
    two = [*launch, str(binary / "shadowlab"), *words, "--run", "two", "--set", "train.batch_size=2"]
    for command in (alone, two):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["passed"] is True  # one document, from the first rank alone
    for (step, loss, norm), (same_step, same_loss, same_norm) in zip(
        losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True
    ):
        assert step == same_step
        assert loss == pytest.approx(same_loss, rel=1e-5)
        assert norm == pytest.approx(same_norm, rel=1e-4)
