"""Which failure of several the launcher reports."""

import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from shadowlab.distributed.launch import _conclude, first_failure
from shadowlab.distributed.liveness import REPORTED
from shadowlab.errors import InterruptedRunError, LostProcessError


def failure(exitcode: int, timestamp: int = 100) -> ProcessFailure:
    made = ProcessFailure(local_rank=0, pid=4242, exitcode=exitcode, error_file=str(Path("absent")))
    made.timestamp = timestamp
    return made


def test_the_killed_one_and_not_those_that_waited_for_it() -> None:
    failures = {0: failure(3, 100), 1: failure(-signal.SIGTERM, 101), 2: failure(-signal.SIGKILL, 101)}
    assert first_failure(failures)[0] == 2


def test_a_cause_and_not_its_consequences() -> None:
    """SIGABRT of a survivor, a silent 3 of one whose peer is gone, a traceback."""
    assert first_failure({0: failure(-signal.SIGABRT), 3: failure(-signal.SIGKILL)})[0] == 3
    assert first_failure({0: failure(3), 1: failure(1)})[0] == 1


def test_what_the_launcher_killed_itself_came_later() -> None:
    failures = {0: failure(1, 100), 1: failure(-signal.SIGKILL, 115)}
    assert first_failure(failures)[0] == 0


def test_exit_codes() -> None:
    assert _conclude({}, interrupted=False) == 0
    assert _conclude({1: failure(2), 0: failure(2)}, interrupted=False) == 2
    with pytest.raises(LostProcessError) as hung:
        _conclude({0: failure(REPORTED), 1: failure(-signal.SIGKILL)}, interrupted=False)
    assert hung.value.printed
    with pytest.raises(LostProcessError, match=r"^rank 1 \(pid 4242\) was ended by SIGKILL .*memory") as caught:
        _conclude({0: failure(3), 1: failure(-signal.SIGKILL)}, interrupted=False)
    assert caught.value.exit_code == 3
    with pytest.raises(LostProcessError, match="SIGSEGV; the others were stopped"):
        _conclude({0: failure(-signal.SIGSEGV)}, interrupted=False)
    with pytest.raises(LostProcessError, match="SIGKILL"):  # out of memory while it saved
        _conclude({0: failure(-signal.SIGKILL)}, interrupted=True)
    with pytest.raises(InterruptedRunError, match="interrupted"):
        _conclude({0: failure(-signal.SIGTERM)}, interrupted=True)
