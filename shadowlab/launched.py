"""Processes that a launcher of ours started end with it. Imports nothing heavy: this must run before anything else."""

import os
import threading
import time

from shadowlab.standard_streams import shout

LAUNCHER = "SHADOWLAB_LAUNCHER"  # its process id, in the environment of those it starts
_PERIOD_SECONDS = 1.0


def end_with_launcher() -> None:
    """Watch the launcher from now on; without effect in a process that none started."""
    if LAUNCHER in os.environ and "RANK" in os.environ:
        threading.Thread(target=_watch, name="launcher", daemon=True).start()


def launcher_is_gone() -> bool:
    """Whether a launcher of ours started this process and has ended."""
    launcher = os.environ.get(LAUNCHER)
    return launcher is not None and "RANK" in os.environ and os.getppid() != int(launcher)


def _watch() -> None:
    """Nothing is saved: the store in which the processes meet was the launcher's; a checkpoint takes all of them."""
    while not launcher_is_gone():
        time.sleep(_PERIOD_SECONDS)
    if os.environ["RANK"] == "0":
        shout("error: the launcher of this process is gone, so it ends; --resume goes on from the newest checkpoint\n")
    os._exit(3)
