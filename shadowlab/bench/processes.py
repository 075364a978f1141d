"""Several processes of one module on this machine, as the hosts and loops of more than one rank need them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch

from shadowlab.errors import UserError


def run_together(module: str, folder: Path, num: int, words: Sequence[str], what: str, seconds: float = 300) -> None:
    """Run `python -m MODULE FOLDER RANK NUM WORDS...` for each rank, to the end of all.

    Args:
        folder: where they meet and leave what they found.
        what: names them in a message.

    Raises:
        UserError: one of them failed.
        subprocess.TimeoutExpired: they take longer than `seconds`; all are killed.
    """
    command = [sys.executable, "-P", "-m", module, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, str(rank), str(num), *words], env=environment, **pipes)  # type: ignore[call-overload]
        for rank in range(num)
    ]
    try:
        said = [process.communicate(timeout=seconds)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, said, strict=True):
        if process.returncode:
            raise UserError(f"a process of {what} failed: {text.strip()[-500:]}")


def join_group(folder: Path, rank: int, num: int) -> None:
    """Make this process one of `num` over gloo, on one thread; they meet in a file of `folder`."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), num)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=num, timeout=timedelta(seconds=60))
