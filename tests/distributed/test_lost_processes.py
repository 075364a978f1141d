"""A process that is killed, or hangs, ends the others within a minute, is named, and costs no more than its steps."""

import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.runs import command, run_here, started, steps_of, wait_for


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, r"error: rank 1 (pid {pid}) was ended by SIGKILL"),
        (signal.SIGSTOP, r"error: rank 1 has not answered for"),
    ],
)
def test_the_others_end_and_name_it(stage_folder: dict[str, Path], tmp_path: Path, number: int, says: str) -> None:
    run = tmp_path / "run"
    words = command(stage_folder, tmp_path, "run", 500, "checkpoint.every_steps=3", "distributed.hang_seconds=5")
    process = started([*words, "--processes", "2"])
    wait_for(process, lambda: len(steps_of(run)) >= 5)
    children = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    children["1"].send_signal(number)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode == 3
    assert "Traceback" not in stderr
    assert "this step is finished, then saved" not in stderr  # with one lost it never is
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert errors[0].startswith(says.format(pid=children["1"].pid))
    saved = len(steps_of(run)) // 3 * 3
    assert f"; step {saved} is saved (step-{saved:08d}), a resume starts there; go on with: " in errors[0]
    assert errors[0] in (run / "log.txt").read_text()
    go_on = f"; go on with: shadowlab train --run run --resume --set output_dir={tmp_path} --skip-stages"
    assert errors[0].endswith(go_on)
    assert not [child for child in children.values() if child.is_running()]

    done = len(steps_of(run))
    resume = [words[0], *go_on.removeprefix("; go on with: shadowlab ").split(), "--processes", "1"]
    resumed = run_here([*resume, "--max-steps", str(done + 2)])
    assert f"steps {done // 3 * 3} to {done + 2}" in resumed.stdout


def test_one_that_is_asked_to_end_has_all_of_them_save(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started([*command(stage_folder, tmp_path, "run", 500), "--processes", "2"])
    wait_for(process, lambda: len(steps_of(run)) >= 3)
    children = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    children["1"].send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    found = re.search(r"interrupted after step (\d+): saved; go on with: shadowlab train --run run --resume", stderr)
    assert found is not None, stderr
    assert (run / "checkpoints" / f"step-{int(found[1]):08d}" / "COMPLETE").is_file()
    assert len(steps_of(run)) == int(found[1])
