"""A process group of one process, for the cases that use collectives or DTensor."""

import torch.distributed as dist


def one_process() -> None:
    """Have a process group; who runs the case takes it down again."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
