"""Two processes under torchrun (gloo) do what one process does with twice the batch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shadowlab.config_files import load_config
from shadowlab.data.dataset import open_dataset
from shadowlab.data.order import sample_indices
from shadowlab.data.split import split_by_object
from shadowlab.training.loader import micro_batch_positions
from tests import tiny


def losses(run: Path) -> list[tuple[int, float, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records if r["kind"] == "train"]


def train_words(folders: dict[str, Path], output: Path, *more: str) -> list[str]:
    """The options of a short run on the small stages."""
    settings = {
        "model.vae": folders["vae"],
        "data.image_size": tiny.SIDE * 8,
        "output_dir": output,
        "validation.num_samples": 2,
        "checkpoint.every_steps": 3,
    }
    words = ["train", "--skip-stages", "--device", "cpu", "--max-steps", "3", *more]
    words += ["--weights", str(folders["unet"]), "--data", str(folders["data"])]
    return words + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def launched(port: int, *options: str) -> list[str]:
    """The beginning of a command in two processes."""
    binary = Path(sys.executable).parent
    launch = [str(binary / "torchrun"), "--nproc-per-node", "2", "--master-port", str(port), *options]
    return [*launch, "--no-python", "--", str(binary / "shadowlab")]


@pytest.mark.slow
def test_two_processes_follow_one(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    words = train_words(stage_folder, tmp_path, "--json")
    alone = [str(Path(sys.executable).parent / "shadowlab"), *words, "--run", "one", "--set", "train.batch_size=4"]
    two = [*launched(29517), *words, "--run", "two", "--set", "train.batch_size=2"]
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


@pytest.mark.slow
def test_a_bad_sample_on_one_rank_is_everybodys_error(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """The second process alone reads it, in the second step: the first must not wait for it in a collective."""
    folders = {**stage_folder, "data": Path(shutil.copytree(stage_folder["data"], tmp_path / "data"))}
    dataset = open_dataset(folders["data"], tiny.SIDE * 8)
    config = load_config()
    split = split_by_object(dataset.object_ids, config.data.validation_fraction, config.seed)
    (positions,) = micro_batch_positions(2, 1, 1, rank=1, num_processes=2)
    (victim,) = sample_indices(positions[0], 1, len(split.train), config.seed)
    name = dataset.ids[split.train[victim]]
    file = folders["data"] / "objects" / f"{name}.png"
    file.write_bytes(file.read_bytes()[:-20])

    logs = tmp_path / "logs"
    words = train_words(folders, tmp_path, "--run", "two", "--set", "train.batch_size=1")
    command = [*launched(29518, "--redirects", "3", "--log-dir", str(logs)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    said = [log.read_text() for log in sorted(logs.rglob("stderr.log"))]
    assert len(said) == 2
    for text in said:
        assert "Traceback" not in text
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, text
        assert errors[0].startswith(f"error: step 2: {name}: objects/{name}.png: truncated or damaged picture")
    entry = json.loads((tmp_path / "two" / "stages.json").read_text())["train"]
    assert entry["passed"] is False and name in entry["summary"]["error"]
