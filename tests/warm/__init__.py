"""Commands in processes of their own that need not import torch again: a server that has, forks for each of them.

What such a process is to its starter and to its children is what a started one is: process id, parent, session,
environment as /proc shows it, standard streams, signals, exit code, Python's own end. What is not tested this way is
the start itself: imports, signals while they run, memory. Those tests start Python (`subprocess`).
"""

import atexit
import inspect
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.warm.jobs import PIPES, ROOM, fds_of, job_of, send

MAY_DIFFER = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCH", "SHADOWLAB_", "PYTHONPATH")
MAY_DIFFER += ("PYTHONUNBUFFERED", "PYTEST_", "NCCL_", "TERM", "COMP_", "_SHADOWLAB", "_TYPER")
"""Beginnings of the environment's names that nothing reads while it is imported."""


class Process(subprocess.Popen[Any]):
    """`subprocess.Popen`; what the server cannot do alike is started by that."""

    imported: tuple[str, ...] = ()
    """What the server has imported; empty: all."""
    _answers: socket.socket | None = None

    def __init__(self, *given: Any, more: Mapping[str, Any] | None = None, **named: Any) -> None:
        """more: of a job, what Popen has no words for."""
        self._more = more or {}
        super().__init__(*given, **named)

    def _execute_child(self, *given: Any) -> None:
        plain = super()._execute_child  # type: ignore[misc]
        start = inspect.signature(plain).bind(*given).arguments
        job = job_of(start)
        if job is None or not _alike(job["environment"], self.imported):
            assert not self._more
            plain(*given)
            return
        self._answers, theirs = socket.socketpair()
        with theirs:
            send(_server(self.imported)[0], job | self._more, [*fds_of(start), theirs.fileno()])
        self.pid = int(self._answers.recv(64))
        self._child_created = True
        self._close_pipe_fds(*(start[name] for name in PIPES))  # type: ignore[attr-defined]

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._answers is None:
            return super()._internal_poll(*given, **named)  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            ended, status = self._try_wait(os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._answers is None:
            return super()._try_wait(flags)  # type: ignore[misc,no-any-return]
        if not select.select([self._answers], [], [], 0 if flags & os.WNOHANG else None)[0]:
            return 0, 0
        status = int(self._answers.recv(64))
        self._answers.close()
        return self.pid, status


def run(
    words: Sequence[str], *, timeout: float, kind: type[Process] = Process, **arguments: Any
) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run(..., capture_output=True, text=True)`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | arguments
    with kind(words, text=True, **pipes) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


class LightProcess(Process):
    """A command that needs no torch, nor may import it."""

    imported = ("cli.commands",)


def _alike(environment: Mapping[str, str], imported: tuple[str, ...]) -> bool:
    """Whether what this environment decides while Python starts and imports is what it decided in the server."""
    here = _server(imported)[1]
    return all(
        environment.get(name) == here.get(name)
        for name in environment.keys() | here.keys()
        if not name.startswith(MAY_DIFFER)
    )


@cache
def _server(imported: tuple[str, ...]) -> tuple[socket.socket, dict[str, str]]:
    """The way to it, and the environment that it was started with."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm.server", str(theirs.fileno()), *imported],
            pass_fds=[theirs.fileno()],
            env=os.environ | ROOM,
            cwd=Path(__file__).parents[2],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, dict(os.environ)
