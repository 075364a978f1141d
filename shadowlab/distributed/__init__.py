"""Several processes that train one model: launched, watched, sharded."""

from shadowlab.distributed.devices import crowded, launched_first, launched_processes, pick_device, require_gpus
from shadowlab.distributed.launch import launch_processes
from shadowlab.distributed.processes import Processes, SingleProcess
from shadowlab.distributed.sharding import assign, is_sharded, local, shard, whole

__all__ = [
    "Processes",
    "SingleProcess",
    "assign",
    "crowded",
    "is_sharded",
    "launch_processes",
    "launched_first",
    "launched_processes",
    "local",
    "pick_device",
    "require_gpus",
    "shard",
    "whole",
]
