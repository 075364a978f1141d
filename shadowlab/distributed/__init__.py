"""Several processes that train one model, or share a list of work: launched, watched, sharded."""

from shadowlab.distributed.devices import (
    crowded,
    launched_by_us,
    launched_first,
    launched_processes,
    pick_device,
    require_gpus,
)
from shadowlab.distributed.launch import launch_processes
from shadowlab.distributed.processes import Processes, SingleProcess
from shadowlab.distributed.sharding import assign, is_sharded, local, shard, whole
from shadowlab.distributed.work import WORK_IS_KEPT, launch_if_asked, share_out, workers

__all__ = [
    "WORK_IS_KEPT",
    "Processes",
    "SingleProcess",
    "assign",
    "crowded",
    "is_sharded",
    "launch_if_asked",
    "launch_processes",
    "launched_by_us",
    "launched_first",
    "launched_processes",
    "local",
    "pick_device",
    "require_gpus",
    "shard",
    "share_out",
    "whole",
    "workers",
]
