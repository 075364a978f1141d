"""The check of a data set says the same however many processes share it and however often it was stopped."""

import fcntl
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shadowlab.examination.check as check
import shadowlab.tasks.shadow.check as shadow_check
from shadowlab.console import Reporter
from shadowlab.distributed import SingleProcess
from shadowlab.errors import InterruptedRunError, UserError
from shadowlab.examination import CheckReport, Selection, check_data
from shadowlab.settings import load_config
from shadowlab.tasks.shadow.check import ShadowExamination
from tests import warm
from tests.runs import started
from tests.tasks.shadow.sound import encode, make_folder, make_tar, mask_picture, softness_members, write_metadata

NUM_SAMPLES = 23
ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set with every kind of problem and notice: in metadata, in pictures, of all samples, of pairs."""
    folder = tmp_path / "set"
    metadata = make_folder(folder, NUM_SAMPLES)
    write_metadata(folder, {**metadata, "img_00003": {"theta": 50, "phi": 0, "size": 4}})
    (folder / "shadows/img_00002.png").write_bytes(b"")
    (folder / "masks/img_00009.png").write_bytes(encode(Image.new("L", (32, 32))))
    (folder / "shadows/img_00011.png").write_bytes(encode(Image.new("L", (32, 32))))
    for i in (4, 17):
        file = folder / f"masks/img_{i:05d}.png"
        file.write_bytes(encode(Image.fromarray(255 - np.asarray(Image.open(file)))))
    for role in ("object", "mask", "shadow"):  # far apart, so that different processes meet them
        (folder / f"{role}s/img_00022.png").write_bytes((folder / f"{role}s/img_00001.png").read_bytes())
    return folder


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(active=False)
        self.lines: list[str] = []

    def say(self, text: str, style: str | None = None) -> None:
        self.lines.append(text)


def checked(path: Path, reporter: Reporter | None = None, **how: Any) -> CheckReport:
    report = check_data(
        load_config(), str(path), SingleProcess(torch.device("cpu")), reporter or Reporter(active=False), **how
    )
    assert report is not None
    return report


def shadowlab(*words: str, code: int = 2) -> str:
    """Its stdout."""
    command = [sys.executable, "-P", "-m", "cli.main", *words]
    done = warm.run(command, timeout=300)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def stopped_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Ctrl-C once `count` samples are examined; what is examined is listed."""
    examined: list[int] = []
    original = ShadowExamination.examine

    def examine(self: ShadowExamination, i: int) -> Any:
        if len(examined) == count:
            raise KeyboardInterrupt
        examined.append(i)
        return original(self, i)

    monkeypatch.setattr(ShadowExamination, "examine", examine)
    return examined


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_any_number_of_processes_finds_the_same(data: Path) -> None:
    before = files_of(data)
    alone = asdict(checked(data, image_size=16))
    assert len(alone["problems"]) == 3 and len(alone["notices"]) == 4
    words = ("data", "check", str(data), "--image-size", "16", "--processes", "3", "--json")
    assert json.loads(shadowlab(*words)) == {"passed": False, **alone}
    assert files_of(data) == before  # nothing is kept in a user's data set


@pytest.mark.parametrize("stops", [(0,), (1, 2, 3), (9, 0, 4), (22,)])
def test_a_check_that_was_stopped_and_resumed_finds_the_same(
    data: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    whole = checked(data)
    examined: list[int] = []
    for number, count in enumerate(stops):
        with monkeypatch.context() as patch:
            some = stopped_after(patch, count)
            with pytest.raises(InterruptedRunError, match=r"\d+ of 23 samples are examined; .* --resume"):
                checked(data, resume=number > 0)
        examined += some
    with monkeypatch.context() as patch:
        examined += stopped_after(patch, -1)
        told = Told()
        examined += (rest := stopped_after(patch, -1))
        assert asdict(checked(data, told, resume=True)) == asdict(whole)
    times = Counter(examined + rest)
    lost = sum(number - 1 for number in times.values())
    assert times.keys() == set(range(NUM_SAMPLES)) and lost <= len(stops) * (check._PART[0] - 1)


def test_what_changed_in_between_is_examined_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, 14)
        with pytest.raises(InterruptedRunError, match="12 of 23"):
            checked(data)
    (data / "masks/img_00009.png").write_bytes(encode(mask_picture()))  # mended
    (data / "shadows/img_00000.png").write_bytes(b"text")  # spoilt
    told = Told()
    resumed = checked(data, told, resume=True)
    assert told.lines == ["resuming: 4 of 23 samples are examined already"]
    assert asdict(resumed) == asdict(checked(data))
    assert "img_00000: shadows/img_00000.png: not a PNG" in str(resumed.problems[1])


def test_without_resume_a_check_starts_anew_and_says_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, 14)
        with pytest.raises(InterruptedRunError):
            checked(data)
    told = Told()
    with monkeypatch.context() as patch:
        examined = stopped_after(patch, -1)
        checked(data, told)
    assert examined == list(range(NUM_SAMPLES)) and "an earlier check was stopped" in told.lines[0]
    told = Told()
    checked(data, told, resume=True)  # a finished one leaves nothing
    assert told.lines == ["there is nothing to resume: the check starts from the beginning"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 99, None])
def test_a_damaged_part_is_examined_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    whole, state = checked(data), tmp_path / "state"
    with monkeypatch.context() as patch:
        stopped_after(patch, 14)
        with pytest.raises(InterruptedRunError):
            checked(data, state=state)
    part = state / "part-000001.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:] if damage is None else damage)
    told = Told()
    assert asdict(checked(data, told, resume=True, state=state)) == asdict(whole)
    assert told.lines == ["resuming: 8 of 23 samples are examined already"] and not state.exists()


def test_two_processes_that_were_stopped_are_resumed_by_one(tmp_path: Path) -> None:
    """The whole command, ended by Ctrl-C while it works."""
    make_folder(tmp_path / "set", 600)
    state = tmp_path / "state"
    words = ("data", "check", str(tmp_path / "set"), "--processes", "2", "--json", "--state", str(state))
    running = started([sys.executable, "-P", "-m", "cli.main", *words])
    until = time.monotonic() + 300
    while len(list(state.glob("part-*"))) < 8:
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130 and "Traceback" not in said
    assert "go on with the same command and --resume" in said
    kept = len(list(state.glob("part-*")))
    told = Told()
    resumed = checked(tmp_path / "set", told, resume=True, state=state)
    assert told.lines == [f"resuming: {min(9 * kept, 600)} of 600 samples are examined already"] and kept >= 8
    assert asdict(resumed) == asdict(checked(tmp_path / "set")) and resumed.num_examined == 600


def test_quick_examines_a_sample_drawn_over_the_whole_set_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "set", 40)
    (tmp_path / "set/masks/stray.png").write_bytes(b"")  # of names and metadata everything is listed
    drawn = []
    for seed in (0, 0, 1):
        with monkeypatch.context() as patch:
            drawn.append(stopped_after(patch, -1))
            told = Told()
            report = checked(tmp_path / "set", told, selection=Selection(10, seed))
        assert told.lines == ["a sample: the pictures of 10 of 40 samples are examined"]
        assert (report.num_samples, report.num_examined, len(report.problems)) == (40, 10, 1)
    assert drawn[0] == drawn[1] != drawn[2] and all(one == sorted(set(one)) and len(one) == 10 for one in drawn)
    assert max(drawn[0]) > 30 and min(drawn[0]) < 10
    assert "the pictures of 10 drawn by seed 0" in shadowlab("data", "check", str(tmp_path / "set"), "--quick", "10")
    assert checked(tmp_path / "set", selection=Selection(99)).num_examined == 40


OPENED = """
import sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
from tests.tasks.shadow.checked import check_dataset
assert not check_dataset(sys.argv[1], 16).problems
print(*[name for name in opened if name.endswith((".png", ".tar"))], sep="\\n")
"""


def opened_by_a_check(path: Path) -> Counter[str]:
    done = warm.run([sys.executable, "-c", OPENED, str(path)], cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return Counter(done.stdout.split())


def test_every_picture_is_read_once(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", 9)
    times = opened_by_a_check(tmp_path / "set")
    assert times == dict.fromkeys(map(str, (tmp_path / "set").rglob("*.png")), 1)
    tar = make_tar(tmp_path / "x.tar", softness_members(6))
    of_pictures, of_metadata, of_the_list = 3 * 6, 6, 2
    assert opened_by_a_check(tar) == {str(tar): of_pictures + of_metadata + of_the_list}


def test_what_samples_of_one_object_share_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "set", 8)
    for i in range(8):
        for role in ("object", "mask"):
            first = tmp_path / f"set/{role}s/img_{i // 4 * 4:05d}.png"
            (tmp_path / f"set/{role}s/img_{i:05d}.png").write_bytes(first.read_bytes())
    decoded: Counter[str] = Counter()
    original = shadow_check.decode_picture

    def counting(role: str, *rest: Any) -> Any:
        decoded[role] += 1
        return original(role, *rest)

    monkeypatch.setattr(shadow_check, "decode_picture", counting)
    report = checked(tmp_path / "set")
    assert decoded == {"object": 2, "mask": 1, "shadow": 8}  # all masks are equal
    assert not report.problems and not report.notices


def test_a_cache_that_cannot_be_written_has_no_effect_but_on_resuming(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checked(data)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    told = Told()
    assert asdict(checked(data, told)) == asdict(whole)
    assert told.lines == ["the cache folder cannot be written: an interrupted check will not be resumed"]
    stopped_after(monkeypatch, 14)
    with pytest.raises(InterruptedRunError, match="nothing is kept, for the cache folder cannot be written"):
        checked(data)


def test_two_checks_of_one_set_do_not_mix(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ShadowExamination.examine

    def examine(self: ShadowExamination, i: int) -> Any:
        monkeypatch.setattr(ShadowExamination, "examine", original)
        with pytest.raises(UserError, match="another check of this data set is running"):
            checked(data)
        return original(self, i)

    monkeypatch.setattr(ShadowExamination, "examine", examine)
    assert len(checked(data).problems) == 3


def test_checks_that_were_stopped_do_not_pile_up(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(6):
        make_folder(tmp_path / str(number), 9)
        with monkeypatch.context() as patch:
            stopped_after(patch, 5)
            with pytest.raises(InterruptedRunError):
                checked(tmp_path / str(number))
    assert len(list((tmp_path / "cache/shadowlab/checks").iterdir())) == check._MOST_CHECKS
    told = Told()
    checked(tmp_path / "5", told, resume=True)
    assert told.lines == ["resuming: 4 of 9 samples are examined already"]


def test_a_check_that_is_running_is_not_taken_for_an_old_one(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running, _ = check._open_folder(None, "running")
    stopped, _ = check._open_folder(None, "stopped")
    lock = check._locked(running)
    for folder in (running, stopped):
        (folder / "part-000000.safetensors").touch()
        os.utime(folder, (0, 0))
    for number in range(check._MOST_CHECKS):
        check._open_folder(None, str(number))
    os.close(lock)
    assert (running / "part-000000.safetensors").exists() and not stopped.exists()


def test_a_lock_that_its_holder_removes_meanwhile_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checks would work in one folder: one with the lock that was removed, one with that of the name."""
    lock, take = tmp_path / "lock", fcntl.flock

    def removed_first(*how: Any) -> None:
        lock.unlink()
        monkeypatch.undo()
        take(*how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    held = check._locked(tmp_path)
    with pytest.raises(UserError, match="another check of this data set is running"):
        check._locked(tmp_path)
    os.close(held)


def test_a_state_that_cannot_be_made_is_one_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"--state {place}: cannot be made .*; choose another folder"):
            checked(data, state=place)
    assert os.path.getsize(tmp_path / "file") == 0
