"""Starting the processes of a run: torchrun's elastic launch, and which process brought the others down."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shadowlab.distributed.liveness import REPORTED
from shadowlab.errors import InterruptedRunError, LostProcessError
from shadowlab.interruption import signals
from shadowlab.launched import LAUNCHER
from shadowlab.standard_streams import outlived

_SHUTDOWN_SECONDS = 10  # for processes that outlive one that was lost
_SAME_MOMENT_SECONDS = 3


def launch_processes(num_processes: int, module: str, words: Sequence[str]) -> int:
    """Run `python -m module *words` in `num_processes` processes of this machine; returns their exit code.

    SIGINT, SIGTERM and SIGHUP are passed on; the processes end after their running step, for as long as that takes.

    Raises:
        LostProcessError: one was killed; names it. The others are ended within seconds.
        InterruptedRunError: a signal ended them before they could hear it themselves.
    """
    outlived()
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_SECONDS))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    os.environ["PYTHONPATH"] = _search_path(module)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"shadowlab-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # a machine need not be able to resolve its own name
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # one line of ours says it
    failures: dict[int, ProcessFailure] = {}
    problem: list[Exception] = []

    def run() -> None:
        try:
            # -P: a folder of the same name where the user stands is not ours.
            elastic_launch(config, sys.executable)("-P", "-m", module, *words)
        except ChildFailedError as error:
            failures.update(error.failures)
        except Exception as error:  # of the launcher itself; raised again where the caller is
            problem.append(error)

    # In a thread the launcher leaves signals to us: it would give the processes seconds to save, then kill them.
    thread = threading.Thread(target=run, name="launcher")
    with signals.passed_on() as heard:
        delivery = _Delivery(heard)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            delivery.make()
    if problem:
        raise LostProcessError(f"the processes could not be started ({problem[0]})") from problem[0]
    return _conclude(failures, interrupted=bool(heard))


def _conclude(failures: Mapping[int, ProcessFailure], *, interrupted: bool) -> int:
    """Exit code of the processes: that of the one that failed first. Their messages are out already."""
    if not failures:
        return 0
    if any(failure.exitcode == REPORTED for failure in failures.values()):
        lost = LostProcessError("a process was lost; the message above names it")
        lost.printed = True
        raise lost
    first = first_failure(failures)
    if first[1].exitcode >= 0:
        return first[1].exitcode
    if interrupted and -first[1].exitcode in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        raise InterruptedRunError("interrupted")
    rank, failure = first
    name = signal.Signals(-failure.exitcode).name
    hint = " (the kernel does that where memory runs out: see dmesg)" if name == "SIGKILL" else ""
    raise LostProcessError(f"rank {rank} (pid {failure.pid}) was ended by {name}{hint}; the others were stopped")


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure of the process that brought the others down.

    A killed process takes those that waited for it along within the same second, with errors of their own; what the
    launcher itself ended came later.
    """
    started = min(failure.timestamp for failure in failures.values())
    early = {r: f for r, f in failures.items() if f.timestamp <= started + _SAME_MOMENT_SECONDS}

    def order(item: tuple[int, ProcessFailure]) -> tuple[int, int, int]:
        rank, failure = item
        code = failure.exitcode
        consequence = {-signal.SIGKILL: 0, LostProcessError.exit_code: 3, -signal.SIGTERM: 4}.get(code, 1 + (code > 0))
        return consequence, failure.timestamp, rank

    return min(early.items(), key=order)


def _search_path(module: str) -> str:
    """PYTHONPATH under which the processes find the same `module` as this one, in a checkout, too."""
    spec = find_spec(module.partition(".")[0])
    folder = str(Path(spec.origin).parents[1]) if spec is not None and spec.origin else ""
    given = os.environ.get("PYTHONPATH", "")
    return given if not folder or "site-packages" in folder else os.pathsep.join(filter(None, [folder, given]))


class _Delivery:
    """Hands what the launcher heard to its processes, including those that start later; they decide when to end."""

    def __init__(self, heard: Sequence[int]) -> None:
        self._heard = heard
        self._delivered: dict[int, int] = {}  # process id -> how many of them it got

    def make(self) -> None:
        if not self._heard:
            return
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "RANK" not in child.environ():
                    continue
                for number in self._heard[self._delivered.get(child.pid, 0) :]:
                    child.send_signal(number)
                self._delivered[child.pid] = len(self._heard)
