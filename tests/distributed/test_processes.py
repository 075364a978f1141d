"""Several processes (gloo) make the run that one makes; what one of them meets, all of them tell once."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from shadowlab.data.loader import micro_batch_positions
from shadowlab.data.order import sample_indices
from shadowlab.data.split import split_by_object
from shadowlab.settings.files import load_config
from shadowlab.tasks.shadow.dataset import open_dataset
from tests import tiny, warm
from tests.runs import BINARY, command, records, run_here, started, steps_of, tensors, wait_for

STEPS = 12
EFFECTIVE = 8  # 2 x accumulation x processes
OFTEN = ("checkpoint.every_steps=6", "train.validate_every=6")


@pytest.fixture(scope="module")
def alone(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, accumulation 4."""
    output = tmp_path_factory.mktemp("alone")
    run_here(command(stage_folder, output, "alone", STEPS, *OFTEN, "train.gradient_accumulation_steps=4"))
    return output / "alone"


def same_curve(one: Path, other: Path) -> None:
    """Losses and norms within float32 rounding; the same samples, order and learning rates; the same validation."""
    wanted, got = records(one), records(other)
    assert [(r["kind"], r["step"]) for r in got] == [(r["kind"], r["step"]) for r in wanted]
    for mine, yours in zip(wanted, got, strict=True):
        assert yours["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        if mine["kind"] == "train":
            assert yours["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
            assert yours["samples"] == mine["samples"]
            assert yours["loss_by_t"] == pytest.approx(mine["loss_by_t"], rel=1e-5)
            assert yours["learning_rate"] == mine["learning_rate"]
    assert len(got[1]["samples"]) == EFFECTIVE
    mine, yours = tensors(one, STEPS), tensors(other, STEPS)
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        assert yours[name].dtype == tensor.dtype
        torch.testing.assert_close(yours[name], tensor, rtol=1e-3, atol=1e-5 * float(tensor.abs().max() + 1e-12))


def stopped_at(stderr: str) -> int:
    """The step after which a run that was interrupted says, once, that it is saved."""
    [step] = re.findall(
        r"^interrupted after step (\d+): saved; go on with: shadowlab train --run", stderr, re.MULTILINE
    )
    return int(step)


def test_four_sharded_processes_then_two_then_one(stage_folder: dict[str, Path], tmp_path: Path, alone: Path) -> None:
    """torchrun's 4 with FSDP2, 2 of our own with DDP, 1: each goes on with the same samples and the same curve."""
    run = tmp_path / "run"
    torchrun = [str(BINARY / "torchrun"), "--nproc-per-node", "4", "--master-port", "29519", "--no-python", "--"]
    words = command(stage_folder, tmp_path, "run", STEPS, *OFTEN, "distributed.strategy=fsdp2")
    four = started([*torchrun, *words])
    wait_for(four, lambda: len(steps_of(run)) >= 1)
    children = psutil.Process(four.pid).children()
    next(child for child in children if child.environ().get("RANK") == "1").send_signal(signal.SIGINT)  # it alone
    _, stderr = four.communicate(timeout=90)
    assert four.returncode == 0, stderr
    first = stopped_at(stderr)
    [checkpoint] = (run / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{first:08d}"
    state = json.loads((checkpoint / "state.json").read_text())
    assert (state["processes"], state["strategy"]) == (4, "fsdp2")
    assert (run / "samples" / "light-sweep-step-00000000.png").is_file()  # a sharded model needs every process for it

    resume = [str(BINARY / "shadowlab"), "train", "--run", "run", "--resume", "--skip-stages"]
    resume += ["--set", f"output_dir={tmp_path}", "--set", "distributed.strategy=ddp"]
    two = started([*resume, "--processes", "2", "--json"])
    wait_for(two, lambda: len(steps_of(run)) >= first + 2)
    two.send_signal(signal.SIGTERM)  # the launcher tells all processes
    stdout, stderr = two.communicate(timeout=90)
    assert two.returncode == 0, stderr
    assert json.loads(stdout)["passed"] is False  # one document, from the first process alone
    assert "changed on resume: distributed.processes 4 -> 2" in stderr
    assert "changed on resume: train.gradient_accumulation_steps 1 -> 2" in stderr
    assert first + 2 <= stopped_at(stderr) < STEPS

    run_here([*resume, "--processes", "1"])
    same_curve(alone, run)


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

    words = command(folders, tmp_path, "two", STEPS, "train.batch_size=1")
    done = warm.run([*words, "--processes", "2"], timeout=300)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"error: step 2: {name}: objects/{name}.png: truncated or damaged picture")
    entry = json.loads((tmp_path / "two" / "stages.json").read_text())["train"]
    assert entry["passed"] is False and name in entry["summary"]["error"]
    assert "Traceback" not in done.stderr


def test_a_wrong_option_is_one_error_of_all_processes(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """What only the task can see, which the launcher does not load: each process sees it, one says it."""
    words = command(stage_folder, tmp_path, "two", STEPS, "task_options.min_soft_iou=2")
    words += ["--processes", "2"]  # three real starts: that the processes find what the launcher found
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1, done.stderr
    assert not (tmp_path / "two").exists()


def test_more_processes_than_gpus(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    words = [*command(stage_folder, tmp_path, "run", STEPS), "--processes", "2", "--device", "cuda"]
    done = warm.run(words, timeout=120)
    assert done.returncode == 3
    assert done.stderr.startswith("error: device cuda: torch sees 0 CUDA devices")
    assert not (tmp_path / "run").exists()
