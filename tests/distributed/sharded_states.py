"""What two processes do for tests/distributed/test_sharded_states.py: steps, a checkpoint, a resume, steps."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from diagnostics.watching import Watch
from shadowlab.distributed import Processes
from shadowlab.errors import UserError
from shadowlab.settings import DistributedConfig
from shadowlab.training.checkpoint import load_checkpoint, save_checkpoint
from shadowlab.training.trainee import Trainee
from tests import tiny


class Mixed(torch.optim.Optimizer):
    """Momentum in shards, one table for all, a Python step; with `scales` a number for each process's shard, too."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, scales: bool = False) -> None:
        super().__init__(params, {"lr": lr, "k": 0})
        self.table, self.scales = torch.linspace(0, 1, 256), scales

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "momentum": torch.zeros_like(p), "table": self.table}
                state["step"] += 1
                state["momentum"].mul_(0.9).add_(p.grad)
                if self.scales and isinstance(p, DTensor):
                    state["scale"] = p.grad.to_local().sum().view(1)
                p.add_(state["momentum"], alpha=-group["lr"])


OPTIMIZERS: dict[str, Any] = {
    "mixed": Mixed,
    "centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
}


def trainee_with(weights: Path, make: Any, processes: Processes | None = None) -> Trainee:
    """Some parameters train, the rest is frozen."""
    trainee = tiny.trainee_of(
        weights, processes=processes, trains=lambda name: name.startswith(("conv_in", "mid_block"))
    )
    trainee.watch.detach()
    optimizer = make(list(trainee.parameters().values()))
    return replace(trainee, optimizer=optimizer, watch=Watch(trainee.unet, optimizer, incidents=None))


def take_steps(trainee: Trainee, steps: range) -> None:
    """The same gradients whatever the processes share; the EMA follows."""
    for step in steps:
        for i, p in enumerate(trainee.parameters().values()):
            gradient = torch.sin(torch.arange(p.numel(), dtype=torch.float32) * (i + 1) + step).view(p.shape)
            p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if isinstance(p, DTensor) else gradient
        trainee.optimizer.step()
        trainee.update_average(trainee.parameters().values())


def save(folder: Path, trainee: Trainee, step: int) -> Path:
    return save_checkpoint(folder, trainee, step=step, position=0, identity={}, keep_last=9)


def main(weights: Path, out: Path) -> None:
    processes = Processes("cpu", DistributedConfig(strategy="fsdp2", processes=2))
    for name, make in OPTIMIZERS.items():
        trainee = trainee_with(weights, make, processes)
        take_steps(trainee, range(3))
        save(out / name, trainee, 3)
        resumed = trainee_with(weights, make, processes)
        load_checkpoint(out / name / "step-00000003", resumed)
        for folder, one in ((out / name, trainee), (out / f"{name} resumed", resumed)):
            take_steps(one, range(3, 5))
            save(folder, one, 5)
    trainee = trainee_with(weights, lambda p: Mixed(p, scales=True), processes)
    take_steps(trainee, range(1))
    try:
        save(out / "refused", trainee, 1)
    except UserError as error:
        (out / f"refused-{processes.rank}.txt").write_text(f"{error.shared} {error}")
    processes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
