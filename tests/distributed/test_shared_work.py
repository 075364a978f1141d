"""Commands whose work several processes share: the same files whatever their number, on one machine or two."""

import hashlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from shadowlab.console.reporter import Reporter
from shadowlab.distributed import share_out
from shadowlab.distributed.processes import SingleProcess
from shadowlab.distributed.work import _duration, _in_order
from shadowlab.errors import UserError
from tests import warm
from tests.runs import BINARY, command, records, run_here, started
from tests.tasks.shadow.sound import make_folder

KEPT = "what is done is kept; go on with the same command"


class FourProcesses(SingleProcess):
    """The first of four, of which every one brings what it is told to."""

    def __init__(self, lists: Sequence[list[Any]]) -> None:
        super().__init__(torch.device("cpu"))
        self.lists = lists

    @property
    def count(self) -> int:
        return 4

    def gather(self, items: list[Any], *, first_only: bool = False) -> list[Any]:
        return [one for items in self.lists for one in items]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    items = list(range(count))
    four = FourProcesses([items[rank::4] for rank in range(4)])
    assert _in_order(four, [], count, first_only=False) == items


def test_one_process_does_everything_in_order_and_in_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    threads = []

    def work(share: Sequence[int]) -> Iterator[int]:
        for item in share:
            threads.append(torch.get_num_threads())
            yield item * item

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        done = share_out(
            SingleProcess(torch.device("cpu")), range(5), work, Reporter(), noun="sample", size=lambda i: i
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert done == [0, 1, 4, 9, 16]
    assert set(threads) == {1}
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("sample 10/10  ") and "samples/s" in line and "left" not in line


def test_an_error_of_an_item_is_raised_and_work_that_ends_early_is_a_fault() -> None:
    def fails(share: Sequence[int]) -> Iterator[int]:
        raise UserError("item 0: broken")
        yield 0

    alone, quiet = SingleProcess(torch.device("cpu")), Reporter(active=False)
    with pytest.raises(UserError, match="item 0: broken") as caught:
        share_out(alone, [0, 1], fails, quiet, noun="sample")
    assert caught.value.shared
    with pytest.raises(ValueError, match="shorter"):
        share_out(alone, [0, 1], lambda share: share[:1], quiet, noun="sample")


def test_durations_are_read_at_a_glance() -> None:
    seconds = (0, 59.6, 61, 3600, 12_000, 100_000, 180_000)
    assert [_duration(one) for one in seconds] == [
        "0 s", "1 min", "1 min 1 s", "1 h", "3 h 20 min", "1 d 3 h", "2 d 2 h",
    ]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def on_two_machines(words: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """`words` by two launchers of two processes each, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [str(BINARY / "torchrun"), "--nnodes", "2", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    both = [started([*launch, "--node-rank", str(node), "--no-python", "--", *words]) for node in range(2)]
    ended = []
    for process in both:
        stdout, stderr = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(words, process.returncode, stdout, stderr))
    for one in ended:
        assert one.returncode == 0, one.stderr
    return ended


def in_processes(count: int, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return warm.run([*words, "--processes", str(count)], timeout=240)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "data"
    make_folder(folder, 40)
    return folder


@pytest.fixture(scope="module")
def encoded(pictures: Path) -> dict[str, str]:
    """Digests of the latents that one process makes."""
    out = pictures.parent / "latents"
    done = CliRunner().invoke(app, encode(pictures, out)[1:])
    assert done.exit_code == 0, done.output
    return digests(out)


def encode(data: Path, out: Path) -> list[str]:
    return [str(BINARY / "shadowlab"), "data", "encode", "--data", str(data), "--out", str(out), "--device", "cpu"]


def test_encode_by_two_launchers_makes_the_files_of_one_process(
    pictures: Path, encoded: dict[str, str], tmp_path: Path
) -> None:
    first, second = on_two_machines(encode(pictures, tmp_path / "latents"))
    assert digests(tmp_path / "latents") == encoded
    assert "80 latents of 40 samples" in first.stdout and second.stdout == ""


def test_a_killed_process_is_named_and_the_same_command_goes_on(
    pictures: Path, encoded: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    words = [*encode(pictures, out), "--processes", "2"]
    process = started(words)
    limit = time.monotonic() + 120
    while len(list(out.glob("??/*.safetensors"))) < 4:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.02)
    children = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    children["1"].send_signal(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank 1 (pid {children['1'].pid}) was ended by SIGKILL") and line.endswith(KEPT)
    assert not (out / "index.json").exists()
    done = warm.run([*words, "--json"], timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"num_kept": 0' not in done.stdout
    assert digests(out) == encoded


def test_three_processes_pack_and_one_error_of_theirs_is_one_line(pictures: Path, tmp_path: Path) -> None:
    words = [str(BINARY / "shadowlab"), "data", "pack", str(pictures), "--shard-mib", "0.1", "--out"]
    done = in_processes(3, [*words, str(tmp_path / "a")])
    assert done.returncode == 0, done.stderr
    one = CliRunner().invoke(app, [*words[1:], str(tmp_path / "b")])
    assert one.exit_code == 0 and digests(tmp_path / "a") == digests(tmp_path / "b")
    (tmp_path / "a" / "notes").touch()
    done = in_processes(2, [*words, str(tmp_path / "a")])
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1, done.stderr


def test_train_by_two_launchers_is_the_run_of_one(stage_folder: dict[str, Path], tmp_path: Path) -> None:
    """4 processes by one launcher: the same bits. One process with the same batch: within rounding."""
    settings = ("train.validate_every=2",)
    on_two_machines(command(stage_folder, tmp_path, "two", 4, *settings))
    done = in_processes(4, command(stage_folder, tmp_path, "one", 4, *settings))
    assert done.returncode == 0, done.stderr
    last = "checkpoints/step-00000004"
    mine, its = digests(tmp_path / "two" / last), digests(tmp_path / "one" / last)
    weights = {name for name in mine if name.endswith(".safetensors")}
    assert len(weights) >= 3 and {name: mine[name] for name in weights} == {name: its[name] for name in weights}
    run_here(command(stage_folder, tmp_path, "alone", 4, *settings, "train.gradient_accumulation_steps=4"))
    for run, tolerance in (("one", 0.0), ("alone", 1e-4)):
        for one, other in zip(records(tmp_path / "two"), records(tmp_path / run), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=tolerance, abs=0.0)
