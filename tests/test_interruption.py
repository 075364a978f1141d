"""Ctrl-C and SIGTERM in `train`, with real processes and signals: the step is finished, the run saved and resumable.

Several processes: tests/test_processes.py.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from shadowlab.training.interruption import Interruption, ending_at_once
from tests.runs import command, run_here, started, steps_of, tensors, wait_for

STEPS = 20
SAVED = re.compile(r"^interrupted after step (\d+): saved; go on with: shadowlab (train --run \S+ --resume .*)$", re.M)


def same_run(one: Path, other: Path) -> None:
    """Weights, EMA and moments bit for bit, and the same losses."""
    wanted, got = tensors(one, STEPS), tensors(other, STEPS)
    assert wanted.keys() == got.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], got[name])]
    assert [(r["step"], r["loss"]) for r in steps_of(one)] == [(r["step"], r["loss"]) for r in steps_of(other)]


@pytest.fixture(scope="module")
def whole(stage_folder: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    output = tmp_path_factory.mktemp("whole")
    run_here(command(stage_folder, output, "whole", STEPS))
    return output / "whole"


@pytest.mark.slow
def test_interrupted_and_resumed_is_as_if_nothing_had_been(
    stage_folder: dict[str, Path], tmp_path: Path, whole: Path
) -> None:
    """The whole process group gets the signal, loader workers too, as from a terminal."""
    run = tmp_path / "run"
    words = command(stage_folder, tmp_path, "run", STEPS, "data.num_workers=2")
    process = started(words, start_new_session=True)
    wait_for(process, lambda: len(steps_of(run)) >= 3)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr  # nothing is lost
    found = SAVED.search(stderr)
    assert found is not None, stderr
    assert "Traceback" not in stderr
    step = int(found[1])
    assert 3 <= step < STEPS
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert f"interrupted after step {step}: saved" in (run / "log.txt").read_text()
    run_here([words[0], *found[2].split()])
    same_run(whole, run)


@pytest.mark.slow
def test_interrupted_before_any_step_the_name_is_free(
    stage_folder: dict[str, Path], tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    process = started(command(stage_folder, tmp_path, "run", STEPS))
    wait_for(process, lambda: (run / "log.txt").exists())  # long before the first step
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted; go on with: shadowlab train --run run --resume" in stderr
    assert not steps_of(run)
    resumed = run_here([*command(stage_folder, tmp_path, "run", STEPS), "--resume"])
    assert "has no checkpoint yet: it starts from the beginning" in resumed.stdout
    same_run(whole, run)


ENDLESS_STEP = """
import time, typer
from cli.errors import reports_errors, run_reporting_usage
from shadowlab.training.interruption import Interruption, ending_at_once

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
    assert "Ctrl-C (again) ends at once without saving" in stderr
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


def opened_as_safetensors_does() -> None:
    """safetensors makes an error about the file of any exception that is raised while it opens one."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise OSError("not a safetensors file") from None


def test_an_interruption_that_a_library_swallows_is_one_still() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ending_at_once():
        opened_as_safetensors_does()
    with pytest.raises(OSError, match="of its own"), ending_at_once():
        raise OSError("of its own")
    assert signal.getsignal(signal.SIGTERM) is before
