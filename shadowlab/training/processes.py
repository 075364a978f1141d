"""The processes of a run, through accelerate: which rank this is, its device, and what ranks tell each other."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shadowlab.errors import MissingDependencyError, UserError


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


class Processes:
    """One process, or one of several started by torchrun or `accelerate launch`.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; several CUDA processes take one GPU each.

    Raises:
        UserError: the word names no device.
        MissingDependencyError: CUDA was asked for and is absent.
    """

    def __init__(self, device: str) -> None:
        chosen = pick_device(device)
        # PartialState is a process-wide singleton; a second command in one process starts afresh.
        PartialState._reset_state()
        self._state = PartialState(cpu=chosen.type == "cpu")
        if ":" in device and self.count > 1:
            raise UserError(f"device {device}: {self.count} processes cannot share one GPU; use --device cuda")
        self.device = chosen if ":" in device else self._state.device
        # What ranks tell each other of files goes over the CPU: no GPU is waited for.
        self._cpu_group = torch.distributed.new_group(backend="gloo") if self.count > 1 else None

    @property
    def rank(self) -> int:
        return self._state.process_index

    @property
    def count(self) -> int:
        return self._state.num_processes

    @property
    def is_main(self) -> bool:
        return self._state.is_main_process

    def require_single(self, command: str) -> None:
        """Raise UserError where `command` was launched with several processes."""
        if self.count > 1:
            raise UserError(f"{command} runs in one process, not {self.count}; start it without torchrun")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model for forward and backward: DistributedDataParallel where there are several processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None, gradient_as_bucket_view=True
        )

    def all_true(self, flag: Tensor) -> Tensor:
        """A boolean scalar that is true where it is true on every rank; stays on the device."""
        if self.count == 1:
            return flag
        value = flag.to(torch.int32)
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
        return value.bool()

    def any_true(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; every rank gets the same answer. Between CPUs: no accelerator waits."""
        if self.count == 1:
            return flag
        value = torch.tensor(flag, dtype=torch.int32)
        torch.distributed.all_reduce(value, group=self._cpu_group)
        return bool(value)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks."""
        if self.count == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value / self.count

    def gather(self, items: list[Any]) -> list[Any]:
        """Every rank's list, joined in rank order, on every rank."""
        return gather_object(items) if self.count > 1 else items

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        return self.gather([value])[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A UserError inside, on any rank, is raised on every rank: none is left waiting for the others.

        Every rank must come here; inside must be no collective.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as own:
            error = own
        if self.count > 1:
            failed = torch.tensor(error is not None, dtype=torch.int32)
            torch.distributed.all_reduce(failed, group=self._cpu_group)
            if failed:
                errors: list[UserError | None] = [None] * self.count
                torch.distributed.all_gather_object(errors, error, group=self._cpu_group)
                error = next(error for error in errors if error is not None)
        if error is not None:
            raise error

    def wait(self) -> None:
        self._state.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group; without effect in a single process."""
        if self.count > 1:
            self._state.destroy_process_group()


class SingleProcess(Processes):
    """The first of several processes, acting alone: no collective, no DDP. For stages that run in one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def rank(self) -> int:
        return 0

    @property
    def count(self) -> int:
        return 1

    @property
    def is_main(self) -> bool:
        return True

    def wait(self) -> None:
        """Nobody to wait for."""
