"""Hosts of several processes, over gloo on this machine.

Each process writes the rows of its hosts to `FOLDER/rank<r>.json`.
"""

import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from diagnostics.files import read_text, replace_text
from shadowlab.bench.hosts.host import HOSTS, Host
from shadowlab.bench.hosts.trial import ACCUMULATIONS, Ranks, Row, try_host
from shadowlab.bench.processes import join_group, run_together


def try_together(hosts: Sequence[Host], num: int, accumulations: Sequence[int] = ACCUMULATIONS) -> list[Row]:
    """Rows of these hosts, each in `num` processes; right where all of these are.

    Raises:
        UserError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [",".join(map(str, accumulations)), *(host.file for host in hosts)]
        run_together(__name__, Path(folder), num, words, ", ".join(host.name for host in hosts))
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
    ranks, place = Ranks(int(rank), int(num)), Path(folder)
    join_group(place, ranks.rank, ranks.num)
    hosts = [host for host in HOSTS if host.file in files]
    steps = [int(one) for one in accumulations.split(",")]
    rows = [vars(try_host(host, accumulation, ranks)) for host in hosts for accumulation in steps]
    replace_text(place / f"rank{rank}.json", json.dumps(rows))
    gc.collect()  # a reducer that holds the group last waits for gloo's threads forever
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
