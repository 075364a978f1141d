"""The server of `tests.warm`: `python -m tests.warm.server FD [MODULE ..]`. Ends when FD's other side is closed.

A job is a JSON object and file descriptors: the three standard streams, and a socket that is told the process id, then
the status that it ended with. A job that starts processes itself (`--processes`, torchrun) is given some that were
forked before it did anything: they are its own children, and run what it starts.
"""

import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.warm.jobs import PIPES, Job, fds_of, job_of, receive, send

PACKAGES = ("shadowlab", "cli", "diagnostics")
LEFT_OUT = {
    "cli.main",  # is run as a program
    *("shadowlab.bench", "shadowlab.demo", "shadowlab.exporting", "shadowlab.foreign"),
    *("shadowlab.tasks.shadow.render", "diagnostics.integrations"),  # import what is optional
}
OWN = os.environ.get("PYTHONPATH", "").split(os.pathsep)
LIBRARIES = (
    *("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl"),
    *("diffusers.training_utils", "torch.distributed.run", "torch.utils.tensorboard", "safetensors.torch"),
    *("torch.distributed.elastic.rendezvous.registry", "torchmetrics.functional.image", "tests.tiny"),
)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the tests end, and with them the socket
    imported(sys.argv[2:])
    del sys.path[0]  # where this module was found
    serve(socket.socket(fileno=int(sys.argv[1])))


def imported(modules: Sequence[str]) -> None:
    """These, or all that the commands import by and by."""
    for name in modules or LIBRARIES:
        importlib.import_module(name)
    for package in () if modules else PACKAGES:
        walk(importlib.import_module(package))
    gc.collect()
    gc.freeze()


def walk(package: types.ModuleType) -> None:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.name in LEFT_OUT or found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        if found.ispkg:
            walk(module)


def serve(control: socket.socket) -> None:
    """Until the other side is closed; returns in a process that was forked for a job and has done it, too."""
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> process id, who is told
    while True:
        for ready in select.select([control, *running], [], [])[0]:
            if ready is not control:
                child, answers = running.pop(ready)
                _tell(answers, os.waitpid(child, 0)[1])
                answers.close()
                os.close(ready)
                continue
            received = receive(control)
            if received is None:
                return
            job, (*streams, answers_to) = received
            child = os.fork()
            if child == 0:
                control.close()
                os.close(answers_to)
                for pidfd, (_, answers) in running.items():
                    os.close(pidfd)
                    answers.close()
                begin(job, streams)
                return
            for fd in streams:
                os.close(fd)
            answers = socket.socket(fileno=answers_to)
            running[os.pidfd_open(child)] = child, answers
            _tell(answers, child)


def _tell(answers: socket.socket, number: int) -> None:
    with suppress(OSError):  # nobody waits for it any more
        answers.send(str(number).encode())


def begin(job: Job, streams: Sequence[int]) -> None:
    """Do the job in this process, with forked ones for those that it starts."""
    take_streams(streams)
    if job["session"]:
        os.setsid()
    if job.get("terminal"):
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # the session's from now on
    for number in job.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    ours: list[tuple[int, socket.socket]] = []
    for _ in range(num_processes(job["words"])):
        mine, its = socket.socketpair()
        child = os.fork()
        if child == 0:
            mine.close()
            for _, other in ours:
                other.close()
            received = receive(its)
            its.close()
            if received is not None:
                its_job, its_streams = received
                take_streams(its_streams)
                if its_job["session"]:
                    os.setsid()
                perform(its_job)
            return
        its.close()
        ours.append((child, mine))
    if ours:
        subprocess.Popen._execute_child = _forked(subprocess.Popen._execute_child, ours)  # type: ignore[attr-defined]
    perform(job)


def num_processes(words: Sequence[str]) -> int:
    """That the command starts itself."""
    return sum(int(words[i + 1]) for i, word in enumerate(words[:-1]) if word in ("--processes", "--nproc-per-node"))


def _forked(plain: Callable[..., None], children: list[tuple[int, socket.socket]]) -> Callable[..., None]:
    """`Popen._execute_child` that takes the next of the children."""

    def execute(self: Any, *given: Any) -> None:
        start = inspect.signature(plain).bind(self, *given).arguments
        job = job_of(start)
        if job is None or not children:
            plain(self, *given)
            return
        self.pid, to = children.pop(0)
        with to:
            send(to, job, fds_of(start))
        self._child_created = True
        self._close_pipe_fds(*(start[name] for name in PIPES))

    return execute


def perform(job: Job) -> None:
    """Become the program of the job."""
    os.chdir(job["folder"])
    take_environment(job["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    tempfile.tempdir = None
    words, options = list(job["words"]), set()
    while words[0] in ("-P", "-u"):
        options.add(words.pop(0))
    safe = "-P" in options
    open_streams("-u" in options or bool(os.environ.get("PYTHONUNBUFFERED")))
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*dict.fromkeys(filter(None, given)), *(one for one in sys.path if one not in [*OWN, *given])]
    if words[0] == "-m":
        sys.path[:0] = [] if safe else [os.getcwd()]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[:0] = [] if safe else [""]
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(words[1], main.__dict__)
    else:
        sys.path[:0] = [] if safe else [os.path.dirname(os.path.realpath(words[0]))]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def take_streams(fds: Sequence[int]) -> None:
    """Have these be 0, 1 and 2."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds]  # a socket may have given one of the three
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    for fd in {*moved, *(fd for fd in fds if fd > 2)}:
        os.close(fd)


def open_streams(unbuffered: bool) -> None:
    """Python's streams on 0, 1 and 2, as Python makes them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, f"__{name}__")  # of the same locale
        raw = open(number, "wb" if number else "rb", 0 if unbuffered and number else -1, closefd=False)  # noqa: SIM115
        by_line = not unbuffered and (number == 2 or raw.isatty())
        stream = io.TextIOWrapper(
            raw, before.encoding, before.errors, newline="\n", line_buffering=by_line, write_through=unbuffered
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def take_environment(environment: Mapping[str, str]) -> None:
    """For this process and for those that read it in /proc."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    assert len(text) < end - start, "the environment is larger than its room"
    os.environ.clear()  # what is set below lies elsewhere
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))
    os.environ.update(environment)


if __name__ == "__main__":
    main()
