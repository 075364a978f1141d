"""Which of several processes this is, where torch.distributed runs."""

import torch


def num_ranks() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def rank() -> int:
    return torch.distributed.get_rank() if num_ranks() > 1 else 0
