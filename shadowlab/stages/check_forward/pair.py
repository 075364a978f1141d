"""The golden run in two processes: where a run trains in several, two of them are started and compared, each by itself.

They are real processes with gloo on the CPU and share the model as the run does (DDP or FSDP2): ranks that read the
same samples or draw the same noise, gradients that are averaged twice or not at all and a rank that is left out show in
what each of them was given and in what its optimizer saw. Starting them takes some seconds, so one process alone does
not pay for it.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from diagnostics.files import read_json, replace_text
from shadowlab.checks import Check
from shadowlab.console import Reporter
from shadowlab.distributed import Processes
from shadowlab.settings import Config
from shadowlab.stages.check_forward.golden_run import Train

WORLD = 2
PAIR = "two processes train as the reference does"
_ANSWER = "an answer of each process"
_PATIENCE_SECONDS, _GRACE_SECONDS = 600.0, 30.0
Compare = Callable[[Config, Processes, Train, Reporter], list[Check]]
"""The golden run and its comparison, in each of the processes."""


def pair_checks(config: Config, compare: Compare, train: Train, folder: Path) -> list[Check]:
    """One check for each process.

    Args:
        config: of the golden run; its samples are there. folder: where the processes leave what they found.
        compare, train: functions of modules: other processes import them.
    """
    context = multiprocessing.get_context("spawn")
    place = str(_free_port())
    changed = config.model_copy(
        update={
            "device": "cpu",
            "precision": "fp32",
            "output_dir": str(folder / "pair"),
            "distributed": config.distributed.model_copy(update={"processes": WORLD}),
        }
    )
    ranks = [
        context.Process(target=_rank, args=(rank, place, changed, compare, train, str(folder)), name=f"rank {rank}")
        for rank in range(WORLD)
    ]
    try:
        for rank in ranks:
            rank.start()
        _await(ranks)
    finally:
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
    checks = [_found(folder, number, rank.exitcode) for number, rank in enumerate(ranks)]
    return sorted(checks, key=lambda check: check.expected == _ANSWER)  # what one says it saw tells more


def _await(ranks: list[Any]) -> None:
    """Until all have ended; one that fails leaves the others in a collective, so that they get a few seconds more."""
    waiting = {rank.sentinel: rank for rank in ranks}
    end = time.monotonic() + _PATIENCE_SECONDS
    while waiting and (left := end - time.monotonic()) > 0:
        ended = [waiting.pop(one) for one in wait(list(waiting), left)]
        for rank in ended:
            rank.join()
            if rank.exitcode:
                end = min(end, time.monotonic() + _GRACE_SECONDS)


def _found(folder: Path, rank: int, code: int | None) -> Check:
    """Of the checks of a process, the first that failed, else the first."""
    name = f"{PAIR}: rank {rank}"
    try:
        checks = [Check(**one) for one in read_json(folder / f"rank-{rank}.json")]
    except (OSError, ValueError, TypeError):
        seen = "it did not end" if code is None else f"it ended with code {code}, before it had compared anything"
        return Check(name, False, _ANSWER, seen, "see what it printed; shadowlab/distributed")
    first = next((check for check in checks if not check.passed), checks[0])
    return Check(name, first.passed, first.expected, first.seen, first.mend)


def _rank(rank: int, port: str, config: Config, compare: Compare, train: Train, folder: str) -> None:
    """One process: as a launcher starts it."""
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
        del os.environ[name]  # of the launcher of a training that asks for this stage: its store is not theirs
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        LOCAL_WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
    )
    processes = Processes("cpu", config.distributed)
    try:
        checks: list[dict[str, Any]] = [
            asdict(check) for check in compare(config, processes, train, Reporter(active=False))
        ]
        replace_text(Path(folder) / f"rank-{rank}.json", json.dumps(checks))
        if not all(check["passed"] for check in checks):
            sys.exit(1)
        processes.wait()
    finally:
        processes.close()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
