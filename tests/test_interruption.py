"""Ctrl-C in `train`, with real processes and real signals: the step is finished, the run saved and resumable."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diagnostics.records import read_records
from shadowlab.training.interruption import Interruption
from tests import tiny

BINARY = Path(sys.executable).parent
STEPS = 30
SAVED = re.compile(r"^interrupted after step (\d+): saved; go on with: shadowlab (train --run \S+ --resume .*)$", re.M)


def command(folders: dict[str, Path], output: Path, name: str, *assignments: str) -> list[str]:
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
    words += ["--max-steps", str(STEPS), "--weights", str(folders["unet"]), "--data", str(folders["data"])]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return words + [word for assignment in assignments for word in ("--set", assignment)]


def started(words: list[str], **arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **arguments)


def steps_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [r for r in read_records(file) if r["kind"] == "train"] if file.is_file() else []


def wait_for(process: subprocess.Popen[str], condition: Any) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return {f"{file.relative_to(folder)}/{key}": t for file in files for key, t in load_file(file).items()}


def same_run(one: Path, other: Path) -> None:
    """Weights, EMA and moments bit for bit, and the same losses."""
    wanted, got = tensors(one), tensors(other)
    assert wanted.keys() == got.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]
    assert [(r["step"], r["loss"]) for r in steps_of(one)] == [(r["step"], r["loss"]) for r in steps_of(other)]


@pytest.fixture(scope="module")
def whole(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run(command(stage_folder, output, "whole"), check=True, capture_output=True)
    return output / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_interrupted_and_resumed_is_as_if_nothing_had_been(
    stage_folder: dict[str, Path], tmp_path: Path, whole: Path, num_workers: int
) -> None:
    """The whole process group gets the signal, loader workers too, as from a terminal."""
    run = tmp_path / "run"
    words = command(stage_folder, tmp_path, "run", f"data.num_workers={num_workers}")
    process = started(words, start_new_session=True)
    wait_for(process, lambda: len(steps_of(run)) >= 3)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    found = SAVED.search(stderr)
    assert found is not None, stderr
    assert "Traceback" not in stderr
    step = int(found[1])
    assert 3 <= step < STEPS
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert f"interrupted after step {step}: saved" in (run / "log.txt").read_text()
    resumed = subprocess.run([words[0], *found[2].split()], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    same_run(whole, run)


@pytest.mark.slow
def test_interrupted_before_any_step_the_name_is_free(
    stage_folder: dict[str, Path], tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    process = started(command(stage_folder, tmp_path, "run"))
    wait_for(process, lambda: (run / "log.txt").exists())  # long before the first step
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted; go on with: shadowlab train --run run --resume" in stderr
    assert not steps_of(run)
    resumed = subprocess.run([*command(stage_folder, tmp_path, "run"), "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "has no checkpoint yet: it starts from the beginning" in resumed.stdout
    same_run(whole, run)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """One rank alone is told; both stop, the first saves, nobody waits for ever."""
    run = tmp_path / "run"
    launch = [str(BINARY / "torchrun"), "--nproc-per-node", "2", "--master-port", "29519", "--no-python", "--"]
    process = started([*launch, *command(stage_folder, tmp_path, "run")])
    wait_for(process, lambda: len(steps_of(run)) >= 3)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    by_rank = {re.search(rb"\bRANK=(\d)", Path(f"/proc/{pid}/environ").read_bytes()): pid for pid in ranks}
    second = next(pid for found, pid in by_rank.items() if found and found[1] == b"1")
    os.kill(int(second), signal.SIGINT)
    _, stderr = process.communicate(timeout=90)
    found = SAVED.search(stderr)
    assert found is not None, stderr
    assert len(SAVED.findall(stderr)) == 1
    assert stderr.count("exitcode  : 130") + stderr.count("exitcode: 130") >= 1, stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{int(found[1]):08d}"]


ENDLESS_STEP = """
import time, typer
from cli.errors import reports_errors, run_reporting_usage
from shadowlab.training.interruption import Interruption

app = typer.Typer()

@app.command()
@reports_errors
def main() -> None:
    with Interruption(speaks=True):
        print("ready", flush=True)
        while True:
            time.sleep(0.01)

run_reporting_usage(app)
"""


def test_the_second_press_ends_at_once_with_130() -> None:
    process = started([sys.executable, "-c", ENDLESS_STEP], cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None  # the first one waits for the step
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "press it again to end at once" in stderr
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr


def test_the_loop_sees_the_first_and_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption(speaks=False) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher's echo of the same press
        assert interruption.asked
        time.sleep(0.6)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
