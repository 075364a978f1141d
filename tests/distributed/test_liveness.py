"""Which process is lost: the rule alone, and threads that tell each other through a real store."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from shadowlab.distributed.liveness import Liveness, Pulse, lost_ranks

WAITING = Pulse(
    rank=0,
    host="here",
    pid=1,
    beat=50,
    marks=12,
    place="waiting for the others",
    at="processes.py:1 in wait",
    still_seconds=45.0,
    idle_seconds=45.0,
    patience_seconds=40.0,
    silence_seconds=40.0,
)
READING = replace(WAITING, rank=1, marks=11, place="reading data", at="dataset.py:88 in read")


def test_one_that_stays_behind_is_named_with_place_and_line() -> None:
    found = lost_ranks(WAITING, {1: (READING, 1.0), 2: (replace(WAITING, rank=2), 1.0)})
    assert found == {1: "has stood still for 45 s (reading data, at dataset.py:88 in read)"}


@pytest.mark.parametrize(
    "other",
    [
        replace(READING, still_seconds=39.0),
        replace(READING, patience_seconds=3600.0),  # writing a checkpoint
        replace(READING, marks=12),  # where everybody is
        replace(READING, marks=13),  # ahead: it waits for us
    ],
)
def test_there_is_hope(other: Pulse) -> None:
    assert lost_ranks(WAITING, {1: (other, 1.0)}) == {}


def test_waiting_counts_from_when_somebody_is_ahead() -> None:
    """Ten minutes in one place, two seconds behind the others."""
    slow = replace(READING, still_seconds=600.0)
    assert lost_ranks(replace(WAITING, still_seconds=2.0), {1: (slow, 1.0)}) == {}


def test_one_that_is_behind_itself_accuses_nobody() -> None:
    assert lost_ranks(READING, {0: (replace(WAITING, still_seconds=100.0), 1.0)}) == {}


def test_the_last_one_holds_those_between() -> None:
    between = replace(WAITING, rank=1, marks=11)
    last = replace(WAITING, rank=2, marks=10, place="forward")
    assert list(lost_ranks(WAITING, {1: (between, 1.0), 2: (last, 1.0)})) == [2]


def test_a_silent_one_is_lost_wherever_it_was() -> None:
    found = lost_ranks(WAITING, {1: (replace(WAITING, rank=1, still_seconds=0.0), 41.0)})
    assert found[1].startswith("has not answered for 41 s (killed, frozen, or its machine is gone)")
    saving = replace(READING, silence_seconds=3600.0, patience_seconds=3600.0)
    assert lost_ranks(WAITING, {1: (saving, 41.0)}) == {}


def test_inside_a_joint_operator_all_lines_are_reported() -> None:
    """A gradient hook that hangs: everybody is in the same backward."""
    own = replace(WAITING, place="backward", marks=12)
    other = replace(own, rank=1, at="hooks.py:7 in wait")
    found = lost_ranks(own, {1: (other, 1.0)})
    assert list(found) == [1, 0] or list(found) == [0, 1]
    assert "hooks.py:7" in found[1]
    assert lost_ranks(replace(own, still_seconds=1.0), {1: (other, 1.0)}) == {}
    assert lost_ranks(own, {1: (replace(other, idle_seconds=1.0), 1.0)}) == {}  # it computes: slow, not lost


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))


@pytest.fixture
def pair(store: TCPStore) -> Iterator[tuple[list[Liveness], list[tuple[int, str]]]]:
    said: list[tuple[int, str]] = []
    both = []
    for rank in range(2):
        one = Liveness(rank, 2, 2.0, store=store, end=lambda text, rank=rank: said.append((rank, text)))
        one._kill = lambda lost: None  # type: ignore[method-assign]  # it is this very process
        both.append(one)
    yield both, said
    for one in both:
        one.close()


def wait_for(said: list[tuple[int, str]], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not said and time.monotonic() < limit:
        time.sleep(0.05)


def test_a_process_that_stays_behind_ends_the_one_that_waits(
    pair: tuple[list[Liveness], list[tuple[int, str]]],
) -> None:
    both, said = pair
    for _ in range(3):  # the first stays are no measure
        for one in both:
            one.at("reading data")
            one.at("waiting for the others")
    for one in both:
        one.at("reading data")
    both[0].at("waiting for the others")
    wait_for(said, 20)
    assert said, "nobody noticed"
    rank, text = said[0]
    assert rank == 0
    assert text.startswith("rank 1 has stood still for")
    assert "(reading data, at " in text


def test_what_a_suspended_process_saw_does_not_count(
    pair: tuple[list[Liveness], list[tuple[int, str]]],
) -> None:
    both, said = pair
    for one in both * 2:
        one.at("reading data")
    both[0].at("waiting for the others")
    both[0].at("waiting for the others")
    time.sleep(1.2)
    for one in both:  # Ctrl-Z, an hour, fg
        one._came_at -= 3600.0
        one._looked_at -= 3600.0
    time.sleep(1.5)
    assert said == []


def test_one_that_moves_or_has_finished_is_left_alone(pair: tuple[list[Liveness], list[tuple[int, str]]]) -> None:
    both, said = pair
    both[1].close()
    for _ in range(30):
        both[0].at("forward")
        time.sleep(0.1)
    both[0].at("checkpoint", patience_seconds=60)
    time.sleep(2.5)
    assert said == []


def test_no_thread_is_left_in_the_store_when_python_shuts_down() -> None:
    """C++ that comes back to a Python that has shut down ends the process with SIGABRT, after all had gone well."""
    code = """
import sys, threading, time
from datetime import timedelta
from torch.distributed import TCPStore
from shadowlab.distributed import liveness

class SlowStore:
    def __init__(self): self.inner = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=5))
    def clone(self): return self
    def set(self, key, value):
        if threading.current_thread() is threading.main_thread(): return
        try: self.inner.wait(["never"], timedelta(seconds=0.4))
        except RuntimeError: pass

class SlowShutdown:
    def __del__(self): time.sleep(1.0)

sys.modules["slow"] = SlowShutdown()
liveness._PERIOD_SECONDS = 0.01
one = liveness.Liveness(0, 1, 60.0, store=SlowStore())
time.sleep(0.2)
one.close()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
