"""The runs at a glance: what each came to, read from its end; what is damaged or foreign is one line."""

import contextlib
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from diagnostics.records.lines import append_record
from shadowlab.console import Reporter
from shadowlab.errors import UserError
from shadowlab.runs.folder import LOCK
from shadowlab.runs.listing import RunSummary, list_runs
from shadowlab.views.terminal.runs import run_runs
from tests.views.page.run_folders import make_run, stage, step

HEADER = {"kind": "header", "stage": "train"}
JUDGED = {"kind": "validation", "step": 3, "loss": 1.0, "r2": 0.5}
ENDED = {"kind": "stage", "stage": "train", "step": 3, "passed": True}
STOPPED = ENDED | {"passed": False, "message": "loss is NaN"}
INCIDENT = {"kind": "incident", "step": 4, "verdict": {"value": "nan"}}
FIXES = {"metrics.jsonl": "", "stages.json": "; remove the file to run the stages again"}
STEPS = [HEADER, step(1), step(2), step(3), JUDGED]

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], tuple[str, str, int | None]]] = {
    "passed": ([*STEPS, ENDED], {"train": stage(steps=3)}, ("train", "passed", 3)),
    "failed": ([*STEPS, STOPPED], {"train": stage(False)}, ("train", "failed", 3)),
    "nan": ([*STEPS, INCIDENT, STOPPED | {"step": 4}], {"train": stage(False)}, ("train", "NaN at step 4", 4)),
    "inf": ([*STEPS, INCIDENT | {"verdict": {"value": "-inf"}}], {}, ("train", "Inf at step 4", 4)),
    "killed": (STEPS, {}, ("train", "interrupted", 3)),
    "resumed after an incident": (
        [*STEPS, HEADER, step(4), step(5)],
        {"train": stage(False)},
        ("train", "interrupted", 5),
    ),
    "resumed after passing": ([*STEPS, ENDED, HEADER, step(4)], {"train": stage(steps=3)}, ("train", "interrupted", 4)),
    "check": (
        [{**ENDED, "stage": "check-forward", "step": 0}],
        {"check-forward": stage()},
        ("check-forward", "passed", 0),
    ),
    "only stages.json": ([], {"check-forward": stage(False)}, ("check-forward", "failed", None)),
    "a full disk": ([*STEPS], {"train": stage(steps=3)}, ("train", "passed", 3)),
    "nothing": ([], {}, ("", "empty", None)),
}


def only(runs: Path) -> RunSummary:
    [found] = list_runs(runs)
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_a_run_came_to(tmp_path: Path, name: str) -> None:
    records, stages, (of_stage, state, at) = CASES[name]
    make_run(tmp_path / "run", records, **({"stages": stages} if stages else {}))
    found = only(tmp_path)
    assert (found.stage, found.state, found.step, found.problem) == (of_stage, state, at, "")
    assert found.evaluation.get("r2") == (0.5 if JUDGED in records else None)


def test_a_run_that_is_claimed_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", STEPS)
    with (run / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert only(tmp_path).state == "running"
    assert only(tmp_path).state == "interrupted"


def test_a_loop_of_somebody_else_has_no_result(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step(1), step(2)])
    (run / "config.yaml").unlink()
    assert (only(tmp_path).state, only(tmp_path).step) == ("no result", 2)


def test_what_is_damaged_or_foreign_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (make_run(tmp_path / "stages", STEPS) / "stages.json").write_text("[1")
    (make_run(tmp_path / "metrics") / "metrics.jsonl").write_text("{damaged}\n")
    late = make_run(tmp_path / "late", STEPS) / "metrics.jsonl"
    late.write_text(late.read_text() + "{damaged}\n")
    (make_run(tmp_path / "no file") / "metrics.jsonl").unlink()
    (tmp_path / "no file" / "metrics.jsonl").mkdir()
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("no folder")
    (tmp_path / ".hidden").mkdir()
    make_run(tmp_path / "closed")
    scandir = os.scandir

    def refusing(place: Any) -> Any:
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    found = {one.path.name: (one.state, one.problem.replace(f"{tmp_path}/", "")) for one in list_runs(tmp_path)}
    assert found == {
        "stages": ("damaged", "stages/stages.json: not JSON; remove the file to run the stages again"),
        "metrics": ("damaged", "metrics/metrics.jsonl: a line is not a JSON record"),
        "late": ("damaged", "late/metrics.jsonl: a line is not a JSON record"),
        "no file": ("damaged", "no file/metrics.jsonl: cannot be read (a folder, not a file)"),
        "notes": ("not a run", ""),
        "closed": ("damaged", "closed: cannot be looked at (Permission denied)"),
    }


def test_the_last_one_worked_at_comes_first(tmp_path: Path) -> None:
    """A report that is made later is no work."""
    for age, name in enumerate(("b", "a", "c")):
        run = make_run(tmp_path / name, STEPS)
        for file in run.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "c" / "reports").mkdir()
    (tmp_path / "z-notes").mkdir()
    found = list_runs(tmp_path)
    assert [one.path.name for one in found] == ["b", "a", "c", "z-notes"]
    assert [one.last_activity for one in found] == [1e9, 1e9 - 1, 1e9 - 2, None]


def test_size_counts_every_file_once_and_follows_no_link(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", STEPS)
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "checkpoints" / "step-1" / "weights").write_bytes(b"x" * 10_000)
    before = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    (tmp_path / "elsewhere").write_bytes(b"x" * 10_000)
    (run / "link").symlink_to(tmp_path / "elsewhere")
    assert before > 10_000 and before < only(tmp_path).num_bytes < before + 1000


def test_what_goes_while_a_run_is_looked_at_does_not_make_it_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training at work removes its oldest checkpoint, folders and files."""
    run = make_run(tmp_path / "run", STEPS)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    (run / "going").write_text("x")
    scandir = os.scandir

    def going(place: Any) -> Any:
        if isinstance(place, int):  # rmtree's own
            return scandir(place)
        if Path(place).name == "checkpoints":
            with scandir(place) as entries:
                found = list(entries)
            shutil.rmtree(run / "checkpoints" / "step-00000001")
            return contextlib.nullcontext(found)
        if Path(place) == run:
            with scandir(place) as entries:
                found = list(entries)
            (run / "going").unlink()
            return contextlib.nullcontext(found)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", going)
    found = only(tmp_path)
    assert not (run / "going").exists()
    assert (found.state, found.problem) == ("interrupted", "") and found.num_bytes > 0


def test_a_folder_that_holds_no_runs_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no folder of runs \(No such file or directory\)"):
        list_runs(tmp_path / "absent")
    with pytest.raises(UserError, match="run: is a run itself; name the folder that holds runs"):
        list_runs(make_run(tmp_path / "run", STEPS))


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="this system does not count what a process reads")
def test_long_runs_are_not_read_through(tmp_path: Path) -> None:
    """60 runs of 25 MB each: what is read of each is its end."""
    first = make_run(tmp_path / "run-0", [HEADER])
    line = b'{"kind": "train", "step": 1, "loss": 1.0, "samples": ["' + b"x" * 250 + b'"]}\n'
    with (first / "metrics.jsonl").open("ab") as file:
        file.write(line * 80_000)
    for record in (JUDGED, *(step(number) for number in range(4, 1000))):
        append_record(first / "metrics.jsonl", record)
    for number in range(1, 60):
        run = make_run(tmp_path / f"run-{number}")
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").hardlink_to(first / "metrics.jsonl")

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])  # rchar

    before = read()
    found = list_runs(tmp_path)
    assert read() - before < 60 * 2**19
    assert len(found) == 60 and {(one.state, one.step, one.evaluation["r2"]) for one in found} == {
        ("interrupted", 999, 0.5)
    }


@pytest.mark.parametrize("name", ["metrics.jsonl", "stages.json", LOCK])
@pytest.mark.usefixtures("alarm")
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", STEPS)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert only(tmp_path).problem == (
        f"{run / name}: cannot be read (a pipe, not a file)" + FIXES[name] if name in FIXES else ""
    )


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    make_run(tmp_path / "run", STEPS)
    here = os.open(tmp_path / "run", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        assert only(tmp_path).state == "interrupted"
    finally:
        subprocess.run(["rm", "-r", tmp_path / "run" / "d"], check=True)  # pytest would remove it by calls as deep


def test_stages_that_a_training_ran_before_follow_it(tmp_path: Path) -> None:
    make_run(tmp_path / "a", STEPS)
    for age, name in ((9, "check-forward"), (5, "overfit")):
        inner = make_run(tmp_path / "a" / "required" / name, [{**ENDED, "stage": name}], stages={name: stage()})
        for file in inner.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "a" / "required" / "notes").mkdir()
    make_run(tmp_path / "b" / "required" / "overfit", STEPS)
    make_run(tmp_path / "b2")
    (tmp_path / "b2" / "config.yaml").rename(tmp_path / "b" / "config.yaml")
    found = {one.path.relative_to(tmp_path).as_posix(): one.state for one in list_runs(tmp_path)}
    assert [name for name in found if name.startswith("a")] == ["a", "a/required/check-forward", "a/required/overfit"]
    assert found["a/required/overfit"] == "passed" and found["a"] == "interrupted"
    assert found["b"] == "interrupted"  # in the stage before


@pytest.mark.parametrize(
    "tail", [b"\0" * 2**20, b"\0" * 17 * 2**20, b'{"kind": "train", "step": 9, "x": "' + b"x" * 2**20]
)
def test_a_damaged_or_sparse_end_is_not_called_empty(tmp_path: Path, tail: bytes) -> None:
    """A power cut leaves zeros behind what was written, and a kill half a line."""
    run = make_run(tmp_path / "run", STEPS)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    state = only(tmp_path).state
    assert state == ("damaged" if len(tail) > 16 * 2**20 else "interrupted"), state
    if state == "damaged":
        assert "holds no record that can be read" in only(tmp_path).problem


def test_names_are_never_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are what other commands are given."""
    long = "sdxl-4xh100-train-20261128T130000Z-with-a-lower-learning-rate"
    for name in (long, "b"):
        make_run(tmp_path / name, [*STEPS, ENDED], stages={"train": stage(steps=3)})
    run_runs(tmp_path, Reporter())
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert long in lines and "b" in lines and max(map(len, lines)) <= 80
    assert lines[lines.index(long) + 1].split()[:2] == ["train", "passed"]
    run_runs(make_run(tmp_path / "few" / "b", STEPS).parent, Reporter())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "stage", "state"] and lines[1].split()[:3] == ["b", "train", "interrupted"]
