"""Hosts of several processes, over gloo on this machine.

Each process writes the rows of its hosts to `FOLDER/rank<r>.json`.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from diagnostics.files import read_text, replace_text
from shadowlab.bench.hosts.host import HOSTS, Host
from shadowlab.bench.hosts.trial import ACCUMULATIONS, Ranks, Row, try_host
from shadowlab.errors import UserError

_SECONDS = 300


def try_together(hosts: Sequence[Host], num: int, accumulations: Sequence[int] = ACCUMULATIONS) -> list[Row]:
    """Rows of these hosts, each in `num` processes; right where all of these are.

    Raises:
        UserError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [str(num), ",".join(map(str, accumulations)), *(host.file for host in hosts)]
        command = [sys.executable, "-P", "-m", __name__, folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen([*command, str(r), *words], env=environment, **pipes) for r in range(num)]  # type: ignore[call-overload]
        try:
            said = [process.communicate(timeout=_SECONDS)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        for process, text in zip(running, said, strict=True):
            if process.returncode:
                raise UserError(f"a process of {', '.join(host.name for host in hosts)} failed: {text.strip()[-500:]}")
        found = [json.loads(read_text(Path(folder) / f"rank{r}.json")) for r in range(num)]
    return [_together([Row(**one) for one in rows]) for rows in zip(*found, strict=True)]


def _together(rows: Sequence[Row]) -> Row:
    wrong = {
        key: "; ".join(f"process {rank}: {row.wrong[key]}" for rank, row in enumerate(rows) if row.wrong[key])
        for key in rows[0].wrong
    }
    return replace(rows[0], wrong=wrong)


def main(folder: str, rank: str, num: str, accumulations: str, *files: str) -> None:
    """One of the processes.

    Args:
        folder: where they meet. rank, num: numbers. accumulations: with commas. files: of the hosts.
    """
    torch.set_num_threads(1)
    ranks, place = Ranks(int(rank), int(num)), Path(folder)
    store = torch.distributed.FileStore(str(place / "store"), ranks.num)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=ranks.rank, world_size=ranks.num, timeout=timedelta(seconds=60)
    )
    hosts = [host for host in HOSTS if host.file in files]
    steps = [int(one) for one in accumulations.split(",")]
    rows = [vars(try_host(host, accumulation, ranks)) for host in hosts for accumulation in steps]
    replace_text(place / f"rank{rank}.json", json.dumps(rows))
    gc.collect()  # a reducer that holds the group last waits for gloo's threads forever
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
