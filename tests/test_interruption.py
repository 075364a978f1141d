"""Ctrl-C and SIGTERM in `train`, with real processes and signals: the step is finished, the run saved and resumable.

Several processes: tests/test_processes.py.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from shadowlab.interruption import Interruption, signals
from tests.runs import command, run_here, started, steps_of, tensors, wait_for

ROOT = Path(__file__).parents[1]
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


def test_interrupted_before_any_step_the_name_is_free(
    stage_folder: dict[str, Path], tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    process = started(command(stage_folder, tmp_path, "run", STEPS))
    wait_for(process, lambda: (run / "log.txt").exists())  # long before the first step
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    says = (
        "interrupted; nothing is saved yet, a resume starts at step 0; go on with: shadowlab train --run run --resume"
    )
    assert says in stderr
    assert not steps_of(run)
    resumed = run_here([*command(stage_folder, tmp_path, "run", STEPS), "--resume"])
    assert "has no checkpoint yet: it starts from the beginning" in resumed.stdout
    same_run(whole, run)


ENDLESS_STEP = """
import time, typer
from cli.errors import reports_errors, run_reporting_usage
from shadowlab.interruption import signals

app = typer.Typer()

@app.command()
@reports_errors
def main() -> None:
    with signals.heard(), signals.after_step(speaks=True):
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
    with Interruption().after_step(speaks=False) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher's echo of the same press
        assert interruption.asked
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGTERM)  # launchers and queues repeat it
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def opened_as_safetensors_does() -> None:
    """safetensors makes an error about the file of any exception that is raised while it opens one."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise OSError("not a safetensors file") from None


def test_an_interruption_that_a_library_makes_another_error_of_is_one_still() -> None:
    before = signal.getsignal(signal.SIGTERM)
    asked = Interruption()
    with pytest.raises(KeyboardInterrupt), asked.heard(), asked.unmasked():
        opened_as_safetensors_does()
    with pytest.raises(OSError, match="of its own"), asked.heard(), asked.unmasked():
        raise OSError("of its own")
    assert signal.getsignal(signal.SIGTERM) is before


def in_a_destructor(number: int) -> None:
    """Where Python drops an exception."""

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Dying()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait", [lambda: time.sleep(20), lambda: [None for _ in iter(int, 1)]], ids=["idle", "busy"])
def test_an_interruption_that_python_drops_comes_again(
    number: int, wait: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = Interruption()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), asked.heard():  # noqa: PT012, the first of them is silent
        in_a_destructor(number)
        wait()
    assert time.monotonic() - began < 5
    assert "Exception ignored" not in capfd.readouterr().err


def test_an_interruption_that_a_library_drops_is_found_at_the_next_safe_point() -> None:
    asked = Interruption()
    with asked.heard():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            asked.stop_if_asked()


def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = Interruption()
        with asked.heard():
            signal.raise_signal(signal.SIGHUP)  # nohup
            assert not asked.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_leaves_signals_to_its_parent() -> None:
    """A Ctrl-C reaches the whole group and is the parent's to answer; SIGTERM is how a parent ends it."""
    with signals.heard():
        for number, code in ((signal.SIGINT, 7), (signal.SIGHUP, 7), (signal.SIGTERM, -signal.SIGTERM)):
            child = os.fork()
            if child == 0:
                try:
                    signal.raise_signal(number)
                finally:
                    os._exit(7 if sys.exc_info()[0] is None else 8)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_where_a_signal_is_fatal_nobody_hears_it_and_afterwards_it_is_heard_again() -> None:
    """A process that waits in C++ for others runs no handler: the launcher would wait for it in vain."""
    asked = Interruption()
    child = os.fork()
    if child == 0:
        try:
            with asked.heard(), asked.fatal():
                signal.raise_signal(signal.SIGTERM)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    with asked.heard():
        with asked.fatal():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_an_interruption_while_torch_is_imported_ends_the_process_without_an_exception(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C++ that calls Python back aborts over a KeyboardInterrupt."""
    monkeypatch.setattr(sys.modules["torch"].__spec__, "_initializing", True, raising=False)
    child = os.fork()
    if child == 0:
        try:
            asked = Interruption()
            with asked.heard():
                signal.raise_signal(signal.SIGINT)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert capfd.readouterr().err == "interrupted\n"


def hears(process: subprocess.Popen[str]) -> bool:
    """Whether it catches SIGHUP, which Python by itself does not."""
    caught = re.search(r"^SigCgt:\t(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) & 1)


@pytest.mark.parametrize("after", [0.0, 0.5, 1.2])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, ["check-forward"]),
        (signal.SIGTERM, ["overfit"]),
        (signal.SIGHUP, ["data", "check", "embedded"]),
        (signal.SIGINT, ["config", "show"]),
    ],
)
def test_any_command_ends_at_any_moment_without_a_traceback(
    number: int, words: list[str], after: float, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-m", "cli.main", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_for(process, lambda: hears(process))  # before that, Python itself is starting
    time.sleep(after)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode in (0, 130, -signal.SIGINT), stderr
    if process.returncode == 130:  # a short one may have been through, or in Python's own last moments
        assert stderr.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in stderr and "Exception ignored" not in stderr


def test_a_command_that_was_interrupted_while_it_evaluates_text_has_its_own_exit_code() -> None:
    """Python ends by SIGINT after a KeyboardInterrupt that passed through exec(), as in `import dataclasses`."""
    script = "import sys; from shadowlab.interruption import signals\n"
    script += "with signals.heard():\n    try:\n        exec('import signal; signal.raise_signal(2)')\n"
    script += "    except KeyboardInterrupt:\n        signals.leave_quietly()\nsys.exit(130)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 130
