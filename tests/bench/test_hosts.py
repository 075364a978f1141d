"""The watch in the loops of everybody: each host, each phase of a step, with and without accumulation."""

import gc
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from shadowlab.bench.hosts import HOSTS, bare, format_report, num_added, run_hosts
from shadowlab.bench.hosts import report as report_file
from shadowlab.bench.hosts.host import Host
from shadowlab.bench.hosts.ranks import try_together
from shadowlab.bench.hosts.trial import Ranks, try_host
from tests import pages

LOOPS = Path(report_file.__file__).parent / "loops"


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Trainer and accelerate collect garbage at every start; not among all that is loaded here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_without_the_marked_lines_a_loop_is_what_it_was() -> None:
    text = """\
    watch = Watch(model)  # added
    for batch in loader:
        for attempt in watch.attempts():  # added
            with attempt, accumulate(model):  # was: with accumulate(model):
                loss = model(batch)

        log(loss)
    """
    was = """\
    for batch in loader:
        with accumulate(model):
            loss = model(batch)

        log(loss)
    """
    assert bare(textwrap.dedent(text)) == textwrap.dedent(was)
    assert num_added(text) == 3


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.file)
def test_a_host_needs_at_most_five_lines_and_has_no_others_of_ours(host: Host) -> None:
    text = (LOOPS / f"{host.file}.py").read_text(encoding="utf-8")
    assert 2 <= host.num_added <= 5
    without = bare(text)
    compile(without, host.file, "exec")
    assert "diagnostics" not in without and "atch(" not in without and "attempt" not in without


def test_the_page_shows_the_loops_as_they_run() -> None:
    lines = {line.strip() for file in LOOPS.glob("*.py") for line in file.read_text(encoding="utf-8").splitlines()}
    shown = [block for block in pages.blocks(pages.ROOT / "docs" / "hosts.md") if block.kind == "python"]
    assert len(shown) == 4
    assert not [line for block in shown for line in block.text.splitlines() if line.strip() not in lines]


@pytest.mark.parametrize(
    ("file", "accumulations"),
    [
        ("plain", (4,)),
        ("compiled", (4,)),
        ("accelerated", (4,)),
        ("diffusers_script", (4,)),
        ("lightning_automatic", (4,)),
        ("lightning_manual", (4,)),
        ("trainer", (4,)),
    ],
)
def test_a_host_is_right_in_every_phase(file: str, accumulations: tuple[int, ...]) -> None:
    [host] = [host for host in HOSTS if host.file == file]
    if host.missing is not None:
        pytest.skip(host.missing)
    for accumulation in accumulations:
        row = try_host(host, accumulation, Ranks())
        assert row.passed, row.wrong


def test_hosts_of_two_processes_are_right_in_every_phase() -> None:
    """With an accumulation in which FSDP2 keeps gradients to itself; without, see `tests/diagnostics/test_ranks.py`."""
    rows = try_together([host for host in HOSTS if host.num_processes == 2], 2, (4,))
    assert [row.host for row in rows] == ["DDP, 2 processes", "FSDP2, 2 processes"]
    assert [row.wrong for row in rows if not row.passed] == []


def test_a_host_that_is_not_installed_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Host("Lightning, automatic", "lightning_automatic", "absent_library", "lightning")
    monkeypatch.setattr(report_file, "HOSTS", (absent,))
    report = run_hosts()
    assert report.rows == [] and report.passed
    [*_, last] = format_report(report).splitlines()
    assert last == 'Lightning, automatic: absent_library is not installed: pip install "shadowlab[lightning]"'


def test_a_wrong_verdict_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop without its watch has no verdict."""
    [plain] = [host for host in HOSTS if host.file == "plain"]
    unwatched = replace(plain, file="plain")
    monkeypatch.setattr(Host, "watched", Host.bare)
    monkeypatch.setattr(report_file, "HOSTS", (unwatched,))
    done = CliRunner().invoke(app, ["bench", "hosts", "--only", "plain"])
    assert done.exit_code == 1
    assert "plain loop, accumulation 1, forward: no verdict (nothing was raised)" in done.stdout


def test_a_mistyped_host_is_one_line() -> None:
    done = CliRunner().invoke(app, ["bench", "hosts", "--only", "lightnin_manual"])
    assert done.exit_code == 2
    assert "no host is called lightnin_manual; did you mean lightning_manual?; they are plain, " in done.output
