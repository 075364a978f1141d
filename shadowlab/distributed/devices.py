"""What this machine and its launcher offer, known before any process joins the others."""

import os
import re

import torch

from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.launched import LAUNCHER


def launched_processes() -> int | None:
    """How many processes a launcher (torchrun, `accelerate launch`, `--processes`) started; None without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else None


def launched_by_us() -> bool:
    """Whether `--processes` of another process started this one; that one reports what became of it."""
    return LAUNCHER in os.environ and "RANK" in os.environ


def launched_first() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def pick_device(device: str) -> torch.device:
    """`auto` (cuda where there is one), `cpu`, `cuda` or `cuda:N` as a device.

    Raises:
        UserError: the word names no device.
        MissingDependencyError: CUDA, or that many GPUs, are absent.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"device {device}: use auto, cpu, cuda or cuda:N")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MissingDependencyError(
            f"device {device}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu or a smaller number"
        )
    return chosen


def require_gpus(device: str, num_processes: int) -> None:
    """Raise MissingDependencyError where this machine has fewer GPUs than processes that want one."""
    num_gpus = torch.cuda.device_count()
    if pick_device(device).type == "cuda" and num_processes > num_gpus:
        raise MissingDependencyError(
            f"{num_processes} processes and {num_gpus} GPUs: each needs one of its own; use --processes {num_gpus} "
            "or --device cpu"
        )


def crowded(device: str, num_processes: int) -> list[str]:
    """What to say of more processes on a CPU than it has cores; empty otherwise."""
    num_cores = os.cpu_count() or 1
    if pick_device(device).type != "cpu" or num_processes <= num_cores:
        return []
    return [f"{num_processes} processes share {num_cores} cores: each is that much slower, and starting takes long"]
