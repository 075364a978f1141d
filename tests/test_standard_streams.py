"""A run outlives its terminal: stdout and stderr may be closed, full, or gone. Short commands keep to Unix."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shadowlab.console.log_file import LogFile
from tests import warm
from tests.runs import command, steps_of, wait_for

ROOT = Path(__file__).parents[1]
STEPS = 10
SHOWN = ("train.log_every=1",)


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_training_goes_on_when_the_disk_of_its_output_is_full(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    words = command(stage_folder, tmp_path, "run", STEPS, *SHOWN)
    with open("/dev/full", "w") as full:
        done = warm.run(words, stdout=full, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning: stdout cannot be written any more (No space left on device)" in done.stderr  # the other can
    assert "Traceback" not in done.stderr
    assert "stdout cannot be written any more" in log_of(tmp_path / "run")


def in_a_terminal(words: list[str], *, nohup: bool) -> tuple[subprocess.Popen[Any], int]:
    """Started in a session with a terminal of its own; returns the terminal's other end, whose closing hangs up."""
    ours, theirs = pty.openpty()

    environment, more = {**os.environ, "TERM": "xterm"}, {"terminal": True, "ignored": [signal.SIGHUP] if nohup else []}
    process = warm.Process(
        words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment, more=more
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    return process, ours


def read_all(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_closed_session_ends_the_run_as_sigterm_does(
    stage_folder: dict[str, Path], tmp_path: Path, num_processes: int
) -> None:
    run = tmp_path / "run"
    words = [*command(stage_folder, tmp_path, "run", 500, *SHOWN), "--processes", str(num_processes)]
    process, terminal = in_a_terminal(words, nohup=False)
    wait_for(process, lambda: bool(read_all(terminal) or len(steps_of(run)) >= 2))
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    log = log_of(run)
    found = re.search(r"^SIGHUP \(the terminal or its connection was closed\): step (\d+) is finished", log, re.M)
    assert found is not None, log
    assert f"interrupted after step {found[1]}: saved" in log
    assert (run / "checkpoints" / f"step-{int(found[1]):08d}" / "COMPLETE").is_file()


def test_under_nohup_a_closed_session_ends_nothing(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process, terminal = in_a_terminal(command(stage_folder, tmp_path, "run", STEPS, *SHOWN), nohup=True)
    wait_for(process, lambda: bool(read_all(terminal) or (run / "log.txt").is_file()))
    os.close(terminal)
    assert process.wait(timeout=120) == 0
    assert len(steps_of(run)) == STEPS
    assert "stderr cannot be written any more" in log_of(run) or "stdout cannot be written any more" in log_of(run)


@pytest.mark.parametrize(
    ("redirection", "code", "says"),
    [
        ("| head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("> /dev/full", (3,), "error: stdout cannot be written (No space left on device)\n"),
        (">&-", (0,), ""),
        ("2>&-", (0,), ""),
        ("<&-", (0,), ""),
    ],
)
def test_a_short_command_keeps_to_unix(redirection: str, code: tuple[int, ...], says: str, tmp_path: Path) -> None:
    shell = ["bash", "-c", f"{sys.executable} -P -m cli.main config schema {redirection}"]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in code
    assert done.stderr == says


def test_the_log_outlives_its_removal_and_a_folder_that_is_gone_for_a_while(tmp_path: Path) -> None:
    folder, warnings = tmp_path / "run", list[str]()
    folder.mkdir()
    log = LogFile(folder / "log.txt", warnings.append)
    log.write("one\n")
    (folder / "log.txt").unlink()
    log.write("two\n")
    assert (folder / "log.txt").read_text() == "two\n"
    folder.rename(tmp_path / "away")
    log.write("three\n")
    log.write("four\n")
    assert len(warnings) == 1 and "No such file or directory" in warnings[0]
    (tmp_path / "away").rename(folder)
    log.write("five\n")
    assert (folder / "log.txt").read_text() == "two\nfive\n"
