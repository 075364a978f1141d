"""Loops of two processes: both try them in turn, and each writes what its tool said to `FOLDER/rank<r>.json`."""

import gc
import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from diagnostics.files import read_text, replace_text
from shadowlab.bench.listing import chosen
from shadowlab.bench.processes import join_group, run_together
from shadowlab.bench.silent.case import Case
from shadowlab.bench.silent.corpus import CORPUS
from shadowlab.bench.silent.tools import TOOLS, Tool
from shadowlab.bench.silent.trial import Trial, tried

NUM = 2


def try_on_ranks(cases: Sequence[Case], tool: Tool) -> list[Trial]:
    """What the tool said of each loop on any rank.

    Raises:
        UserError: a process failed.
    """
    if not cases:
        return []
    with tempfile.TemporaryDirectory() as folder:
        words = [tool.name, *(case.name for case in cases)]
        run_together(__name__, Path(folder), NUM, words, f"{tool.name} on {NUM} ranks")
        found = [json.loads(read_text(Path(folder) / f"rank{rank}.json")) for rank in range(NUM)]
    return [_together([Trial.from_json(one) for one in of_case]) for of_case in zip(*found, strict=True)]


def _together(trials: Sequence[Trial]) -> Trial:
    said = dict.fromkeys(one for trial in trials for one in trial.said)
    error = next((trial.error for trial in trials if trial.error is not None), None)
    return Trial(tuple(said), error, max(trial.seconds for trial in trials))


def main(folder: str, rank: str, num: str, tool: str, *names: str) -> None:
    """One of the processes."""
    place = Path(folder)
    join_group(place, int(rank), int(num))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num}  # for accelerate
    os.environ |= {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": "0"}
    found = []
    for case in chosen(CORPUS, names, "case"):
        found.append(tried(case, TOOLS[tool]).to_json())
        gc.collect()  # a reducer that holds the group last waits for gloo's threads forever
        dist.barrier()
    replace_text(place / f"rank{rank}.json", json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
