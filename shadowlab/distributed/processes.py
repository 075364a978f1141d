"""The processes of a run, through accelerate: which rank this is, its device, and what ranks exchange."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from shadowlab.distributed.devices import launched_processes, pick_device, require_gpus
from shadowlab.distributed.liveness import Liveness
from shadowlab.distributed.sharding import shard
from shadowlab.errors import UserError
from shadowlab.interruption import signals
from shadowlab.settings import DistributedConfig

_COLLECTIVE_TIMEOUT = timedelta(hours=2)  # of last resort: Liveness tells a lost process from a slow one long before


class Processes:
    """One process, or one of several started by `--processes`, torchrun or `accelerate launch`.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; several CUDA processes take one GPU each.
        distributed: how several work together.

    Raises:
        UserError: the word names no device.
        MissingDependencyError: CUDA was asked for and is absent, or there are more processes than GPUs.
    """

    def __init__(self, device: str, distributed: DistributedConfig | None = None) -> None:
        chosen = pick_device(device)
        self._distributed = distributed or DistributedConfig()
        require_gpus(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        # PartialState is a process-wide singleton; a second command in one process starts afresh.
        PartialState._reset_state()
        several = {"timeout": _COLLECTIVE_TIMEOUT} if (launched_processes() or 1) > 1 else {}
        with signals.fatal() if several else nullcontext():  # it may wait for one that will never come
            self._state = PartialState(cpu=chosen.type == "cpu", **several)
        if ":" in device and self.count > 1:
            raise UserError(f"device {device}: {self.count} processes cannot share one GPU; use --device cuda")
        self.device = chosen if ":" in device else self._state.device
        # What ranks exchange about files goes over the CPU: no GPU is waited for.
        self._cpu_group = None
        self._parallel: DistributedDataParallel | None = None
        self.liveness: Liveness | None = None
        if self.count > 1:
            self._cpu_group = torch.distributed.new_group(backend="gloo", timeout=_COLLECTIVE_TIMEOUT)
            self.liveness = Liveness(self.rank, self.count, self._distributed.hang_seconds)

    @property
    def rank(self) -> int:
        return self._state.process_index

    @property
    def count(self) -> int:
        return self._state.num_processes

    @property
    def is_main(self) -> bool:
        return self._state.is_main_process

    @property
    def is_first_here(self) -> bool:
        """Of the processes of its machine."""
        return self._state.is_local_main_process

    def num_cores(self) -> int:
        """This process's share of the cores of its machine, at least 1."""
        return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def require_single(self, command: str) -> None:
        """Raise UserError where `command` was launched with several processes."""
        if self.count > 1:
            raise UserError(f"{command} runs in one process, not {self.count}; start it without torchrun")

    @property
    def strategy(self) -> str:
        """`single`, `ddp` or `fsdp2`."""
        return "single" if self.count == 1 else self._distributed.strategy

    def at(self, place: str, *, patience_seconds: float = 0.0, silence_seconds: float = 0.0) -> None:
        """Say where this process stands, for the others and for the message that names it should it stay there.

        Every process must come to the same places in the same order.

        patience_seconds: the others wait at least this long. silence_seconds: its threads may have no turn for this
        long.
        """
        signals.stop_if_asked()
        if self.liveness is not None:
            self.liveness.at(place, patience_seconds, silence_seconds)

    def move(self) -> None:
        """This process is still at the place that it named, and not stuck there."""
        if self.liveness is not None:
            self.liveness.move()

    def expect_delay(self, seconds: float) -> None:
        """From here on every place may take this long: a step is examined, operator by operator. 0 ends it."""
        if self.liveness is not None:
            self.liveness.delay_seconds = seconds

    def report_losses_to(self, log: Path | None, *, go_on: str, saved: Callable[[], str] | None = None) -> None:
        """Set where the message about a lost process is kept, if anywhere, and the command that it ends with.

        saved: says what was saved by then.
        """
        if self.liveness is not None:
            self.liveness.log, self.liveness.go_on, self.liveness.saved = log, go_on, saved

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model for forward and backward; its parameters are those that an optimizer may have from now on.

        DistributedDataParallel around it, or the model itself, sharded in place; untouched in a single process.
        """
        if self.strategy == "single":
            return model
        if self.strategy == "fsdp2":
            shard(model, init_device_mesh(self.device.type, (self.count,)))
            return model
        device_ids = [self.device] if self.device.type == "cuda" else None
        self._parallel = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        return self._parallel

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
        """Mean over ranks of a tensor of any shape, the same on all; stays on the device."""
        if self.count == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value / self.count

    def gather(self, items: list[Any], *, first_only: bool = False) -> list[Any]:
        """Every rank's list of plain values or CPU tensors, joined in rank order, on every rank.

        first_only: on the first rank alone; empty on the others.
        """
        if self.count == 1:
            return items
        lists: list[list[Any]] = [[]] * self.count
        if first_only:
            torch.distributed.gather_object(items, lists if self.is_main else None, group=self._cpu_group)
        else:
            torch.distributed.all_gather_object(lists, items, group=self._cpu_group)
        return [item for one in lists for item in one]

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        return self.gather([value])[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A UserError inside, on any rank, is raised on every rank: none is left waiting for the others.

        Every rank must call this; there must be no collective inside.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as own:
            error = own
        self.at("waiting for the others")
        if self.count > 1:
            failed = torch.tensor(error is not None, dtype=torch.int32)
            torch.distributed.all_reduce(failed, group=self._cpu_group)
            if failed:
                errors: list[UserError | None] = [None] * self.count
                torch.distributed.all_gather_object(errors, error, group=self._cpu_group)
                error = next(error for error in errors if error is not None)
        if error is not None:
            error.shared = True
            raise error

    def wait(self) -> None:
        self.at("waiting for the others")
        if self.count > 1:
            torch.distributed.barrier(group=self._cpu_group)

    def close(self) -> None:
        """Leave the process group; without effect in a single process."""
        if self.liveness is not None:
            self.liveness.close()
        if self._parallel is not None and hasattr(self._parallel, "reducer"):
            # Its reducer must not be the last to hold the group: it would end gloo's threads while it holds Python's
            # lock, and one of them may wait for that.
            del self._parallel.reducer, self._parallel.logger
        if self.count > 1:
            self._state.destroy_process_group()


class SingleProcess(Processes):
    """The first of several processes, acting alone: no collective, no DDP. For stages that run in one process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.liveness = None
        self._parallel = None
        self._distributed = DistributedConfig()

    @property
    def rank(self) -> int:
        return 0

    @property
    def count(self) -> int:
        return 1

    @property
    def is_main(self) -> bool:
        return True

    @property
    def is_first_here(self) -> bool:
        return True

    def wait(self) -> None:
        """Nobody to wait for."""
