"""What the server of `tests.warm` is sent: a job is a JSON object and file descriptors."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOM = {"WARM_ROOM": "x" * 32_768}  # in the environment that /proc shows, for that of another process
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
PLAIN = {"preexec_fn": None, "pass_fds": (), "shell": False, "executable": None, "process_group": -1, "umask": -1}
PLAIN |= {"uid": None, "gid": None, "gids": None}
Job = dict[str, Any]
"""`words` behind `python`, `folder`, `environment`, whether it begins a `session`; whether that has stdin for its
`terminal`, and the signals that are `ignored` (nohup)."""


def send(to: socket.socket, job: Job, fds: Sequence[int]) -> None:
    """As length and text: a job has the whole environment."""
    text = json.dumps(job).encode()
    socket.send_fds(to, [len(text).to_bytes(8, "little")], list(fds))
    to.sendall(text)


def receive(source: socket.socket) -> tuple[Job, list[int]] | None:
    """None once the other side is closed."""
    head, fds, _, _ = socket.recv_fds(source, 8, 8)
    if not head:
        return None
    length, text = int.from_bytes(head, "little"), b""
    while len(text) < length:
        text += source.recv(length - len(text))
    return json.loads(text), fds


def words_of_python(words: Sequence[str]) -> list[str] | None:
    """What comes after `python` in the command line, one without options but -P and -u; None if it is no such command.

    A program that is a script for this Python is one.
    """
    if words[0] == sys.executable:
        rest = list(words[1:])
    elif Path(words[0]).parent == Path(sys.executable).parent and Path(words[0]).read_bytes()[:2] == b"#!":
        rest = list(words)
    else:
        return None
    first = next((word for word in rest if word not in ("-P", "-u")), "-")
    return rest if first in ("-m", "-c") or not first.startswith("-") else None


def job_of(start: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the arguments of `Popen._execute_child` ask for; None if only that can do it."""
    if isinstance(start["args"], str) or any(start.get(name, plain) != plain for name, plain in PLAIN.items()):
        return None
    words = words_of_python([os.fspath(word) for word in start["args"]])
    if words is None:
        return None
    return {
        "words": words,
        "folder": os.fspath(start["cwd"] or os.getcwd()),
        "environment": dict(os.environ if start["env"] is None else start["env"]),
        "session": bool(start["start_new_session"]),
    }


def fds_of(start: Mapping[str, Any]) -> list[int]:
    """Of the three standard streams."""
    pipes = [start[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    return [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
