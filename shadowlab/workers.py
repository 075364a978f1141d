"""How many loader processes a machine may be asked for."""

import os

from shadowlab.errors import UserError
from shadowlab.settings import Config

_MOST_A_PROCESSOR = 4


def require_few_workers(config: Config) -> None:
    """Raise UserError where `data.num_workers` of all training processes of this machine is beyond what can help it.

    Asked where workers are about to be started, not where a configuration is read: a run of a larger machine can be
    looked at on a smaller one.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", config.distributed.processes))
    most, asked = _MOST_A_PROCESSOR * processors, config.data.num_workers
    if asked * processes > most:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"data.num_workers={asked}{each}: at most {most} on this machine, four for each of its {processors} "
            "processors; more wait for one another, and each takes memory of its own; "
            f"set data.num_workers={max(1, processors // processes)}"
        )
