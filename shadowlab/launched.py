"""Processes that a launcher of ours started end with it. Imports nothing heavy: this must run before anything else."""

import os
import threading
import time

LAUNCHER = "SHADOWLAB_LAUNCHER"  # its process id, in the environment of those it starts
_PERIOD_SECONDS = 1.0


def end_with_launcher() -> None:
    """Watch the launcher from now on; without effect in a process that none started."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and "RANK" in os.environ:
        threading.Thread(target=_watch, args=(int(launcher),), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_PERIOD_SECONDS)
    if os.environ["RANK"] == "0":
        os.write(2, b"error: the launcher of this process is gone, so it ends; go on with --resume\n")
    os._exit(3)
