"""A process that has imported the libraries, and nothing of this project, and forks for each command it is sent.

Run as a script (`python -P warm_process.py LIBRARY ..`). A line of JSON on stdin is a command:

    {"tree": folder that the project is imported from, "module": whose `main` is run, "words": of the command line,
     "folder": working directory, "environment": {name: value}, "seconds": at most, "stdout": file, "stderr": file}

and the answer a line of JSON on stdout:

    {"code": exit code, "seconds": taken, "cpu_seconds": computed, "timed_out": whether it was ended}

A command whose starter is gone is ended.
"""

import importlib
import json
import os
import signal
import sys
import time
from contextlib import suppress

STARTED_BY = os.getppid()


def serve() -> None:
    """Answer commands until stdin ends."""
    for name in sys.argv[1:]:
        with suppress(ImportError):  # the command that needs it says so
            importlib.import_module(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            become(command)
            return
        answer = ended(child, began + command["seconds"])
        print(json.dumps(answer | {"seconds": time.monotonic() - began}), flush=True)


def become(command: dict) -> None:
    """Run the command line in this process, and end it."""
    os.setsid()
    os.chdir(command["folder"])
    for number, place in ((1, command["stdout"]), (2, command["stderr"])):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(command["environment"], PYTHONPATH=command["tree"], PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path.insert(0, command["tree"])
    sys.argv = ["shadowlab", *command["words"]]
    importlib.import_module(command["module"]).main()


def ended(child: int, until: float) -> dict:
    """Exit code, seconds of computing, and whether its time was up: then it is killed with all that it started."""
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until or os.getppid() != STARTED_BY:
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            return {"code": -signal.SIGKILL, "timed_out": True, "cpu_seconds": used.ru_utime + used.ru_stime}
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "timed_out": False, "cpu_seconds": used.ru_utime + used.ru_stime}


if __name__ == "__main__":
    serve()
