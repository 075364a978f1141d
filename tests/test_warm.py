"""A process of the warm server is what one that Python starts is."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import warm

SEEN = """
import __main__, json, os, signal, sys, tempfile
signals = {number: str(signal.getsignal(number)) for number in range(1, 32) if number not in (9, 19)}
three = (sys.stdin, sys.stdout, sys.stderr)
streams = [(s.encoding, s.errors, s.line_buffering, s.write_through, s.fileno(), s.isatty()) for s in three]
seen = {
    "argv": sys.argv, "path": sys.path, "folder": os.getcwd(), "name": __name__, "main": __main__.x is x,
    "environment": dict(os.environ), "leads": os.getsid(0) == os.getpid(), "signals": signals, "streams": streams,
    "open": sorted(map(int, os.listdir("/proc/self/fd"))), "text": sys.stdin.read(), "place": tempfile.gettempdir(),
    "shown": dict(one.split("=", 1) for one in open("/proc/self/environ").read().split(chr(0)) if one),
}
seen["shown"].pop("LC_CTYPE", None), seen["environment"].pop("LC_CTYPE", None)  # Python's own, in the C locale
print(json.dumps(seen))
sys.stderr.write("said")
sys.exit(7)
"""


def both(words: list[str], **arguments: Any) -> list[dict[str, Any]]:
    """What a process that is started sees, and what one of the server does."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    seen = []
    for kind in (subprocess.Popen, warm.LightProcess):
        with kind(words, **pipes, **arguments) as process:
            stdout, stderr = process.communicate("typed", timeout=60)
        assert (process.returncode, stderr) == (7, "said"), stderr
        seen.append(json.loads(stdout))
    return seen


@pytest.mark.parametrize("form", [["-c", f"x = 1\n{SEEN}"], ["seen.py"], ["-P", "seen.py"], ["-m", "seen"]])
def test_it_sees_what_a_started_one_sees(form: list[str], tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(f"x = 1\n{SEEN}")
    environment = {**os.environ, "RANK": "3", "PYTHONPATH": f"{tmp_path}/one{os.pathsep}{tmp_path}/other"}
    words = [sys.executable, *form, "a", "b c"]
    for session in (False, True):
        started, forked = both(words, cwd=tmp_path, env=environment, start_new_session=session)
        assert forked == started and forked["leads"] is session


def test_a_signal_ends_it_and_its_environment_is_shown_meanwhile() -> None:
    script = "import time; print('here', flush=True); time.sleep(60)"
    environment = {**os.environ, "RANK": "5"}
    with warm.LightProcess([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n" and process.poll() is None
        assert psutil.Process(process.pid).environ()["RANK"] == "5"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM and process.poll() == -signal.SIGTERM


STARTS = """
import subprocess, sys
words = [sys.executable, "-c", "import os, sys; print(os.getppid(), os.environ['RANK'], 'cli.commands' in sys.modules)"]
several = [subprocess.Popen(words, env={"RANK": str(rank)}, stdout=subprocess.PIPE, text=True) for rank in range(3)]
for one in several:
    print(one.communicate()[0].strip(), one.returncode)
"""


def test_what_it_starts_are_its_own_children_as_many_as_it_says_already_forked() -> None:
    warm._server.cache_clear()  # one that knows this test's environment
    with warm.LightProcess(
        [sys.executable, "-c", STARTS, "--processes", "2"], stdout=subprocess.PIPE, text=True
    ) as process:
        stdout, _ = process.communicate(timeout=60)
    assert stdout.splitlines() == [f"{process.pid} {rank} {rank < 2} 0" for rank in range(3)]


def test_what_the_server_cannot_do_alike_is_started() -> None:
    warm._server.cache_clear()
    script = "import os, sys; print('cli.commands' in sys.modules, os.environ.get('LANGUAGE'))"
    for environment, wanted in ((os.environ | {"LANGUAGE": "xx"}, "False xx\n"), (dict(os.environ), "True None\n")):
        done = warm.run([sys.executable, "-c", script], kind=warm.LightProcess, env=environment, timeout=60)
        assert done.stdout == wanted
    assert warm.run(["echo", "x"], timeout=60).stdout == "x\n"
