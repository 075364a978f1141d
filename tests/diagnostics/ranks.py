"""What a rank does in `test_ranks`: a few watched steps in one of two gloo processes, which import this."""

import copy
import gc
import json
import math
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics import NonFiniteError, Watch, explain

NUM_RANKS = 2
BATCH_SIZE = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x))
        for block in self.blocks:
            h = torch.sigmoid(block(h))
        return self.last(h)


class RootNet(Net):
    """Takes a root of an input channel, which is negative in the bad sample."""

    def forward(self, x: Tensor) -> Tensor:
        root = torch.sqrt(x[:, :1] + 10.0)  # root
        return super().forward(x) * root


class RootInBackward(torch.autograd.Function):
    """Its backward divides by the root of `poisoned`."""

    @staticmethod
    def forward(context: Any, x: Tensor, poisoned: Tensor) -> Tensor:
        context.save_for_backward(poisoned)
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (poisoned,) = context.saved_tensors
        return gradient * torch.rsqrt(poisoned)[:, None], None


class BackwardNet(Net):
    """Its backward divides by the square root of an input channel, which is zero in the bad sample."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x))
        h = RootInBackward.apply(h, (x[:, 0] + 10.0).detach())  # apply
        for block in self.blocks:
            h = torch.sigmoid(block(h))
        return self.last(h)


class AveragedNet(Net):
    """Keeps an average of its last layer in a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.last).requires_grad_(False)

    def update_average(self, weight: float) -> None:
        pairs = [(self.average.weight, self.last.weight), (self.average.bias, self.last.bias)]
        averages, current = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(averages), [one.detach() for one in current], weight)  # average


def build(kind: str, wrapper: str | None, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = {"root": RootNet, "backward": BackwardNet, "average": AveragedNet}.get(kind, Net)().to(dtype)
    if wrapper is None:
        return model
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batch_of(step: int, bad: float | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    x, y = (torch.randn(BATCH_SIZE, size, generator=generator) for size in (8, 3))
    if bad is not None:
        x[2, 0] = bad
    return {"x": x, "y": y, "ids": [f"rank{dist.get_rank()}_{step}_{i}" for i in range(BATCH_SIZE)]}


def local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone().reshape(-1)


@torch.no_grad()
def poison(model: nn.Module) -> None:
    weight = dict(model.named_parameters())[next(n for n, _ in model.named_parameters() if "blocks.1.weight" in n)]
    (weight.to_local() if hasattr(weight, "to_local") else weight)[0, 0] = torch.nan


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    kept = [local(p) for p in model.parameters()]
    for values in optimizer.state.values():
        kept += [local(v) for v in values.values() if isinstance(v, Tensor)]
    return kept


def run_steps(
    spec: dict[str, Any], folder: Path, *, watched: bool
) -> tuple[NonFiniteError | None, int, bool, list[Tensor]]:
    """(what was raised, steps done, whether the tripped step left no trace, state at the end)."""
    kind, dtype = spec["model"], torch.float16 if spec["model"] == "half" else torch.float32
    model = build(kind, spec["wrapper"], dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Watch(model, optimizer, statistics_every=spec.get("statistics_every", 0), incidents=folder)
    clip, bad_step, bad_rank = spec.get("clip", False), spec.get("bad_step"), spec.get("bad_rank", 1)
    for index in range(spec.get("num_steps", 3)):
        bad = spec.get("bad") if index == bad_step and dist.get_rank() == bad_rank else None
        batch = batch_of(index, bad)
        if kind == "half":  # a dead input: gradients of exactly zero, where AdamW divides 0 by eps
            batch |= {"x": batch["x"].half(), "y": batch["y"].half()}
            batch["x"][:, 7] = 0
        if kind == "state" and index == bad_step and dist.get_rank() == bad_rank:
            poison(model)

        is_bad = index == bad_step and bad_rank in (None, dist.get_rank())

        def step(batch: dict[str, Any] = batch, is_bad: bool = is_bad) -> Tensor:
            optimizer.zero_grad()
            predicted = model(batch["x"])
            loss = (predicted - batch["y"]).square().mean()
            if kind == "sum":  # each rank's gradient is finite, their sum is not
                loss = predicted.sum() * 5e37
            loss.backward()
            if kind == "sum":
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)  # reduce
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if kind == "average":
                bare = model.module if isinstance(model, DistributedDataParallel) else model
                bare.update_average(math.nan if is_bad else 0.1)
            return loss.detach()

        if spec.get("is_explained"):
            verdict = explain(step, model=model, optimizer=optimizer)
            return None if verdict is None else NonFiniteError(verdict), index, True, []
        before = state(model, optimizer)
        try:
            watch.step(step, batch=batch) if watched else step()
        except NonFiniteError as error:
            after = state(model, optimizer)
            same = len(before) == len(after) and all(map(same_bits, before, after))
            return error, index, same, after
    return None, spec.get("num_steps", 3), True, state(model, optimizer)


def report_of(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    error, done, untouched, final = run_steps(spec, folder, watched=True)
    report = {"done": done, "untouched": untouched, "raised": error is not None}
    if error is not None:
        incident = None if error.incident is None else str(error.incident)
        return report | {"verdict": error.verdict.to_json(), "incident": incident}
    _, _, _, bare = run_steps(spec, folder, watched=False)
    return report | {"identical": len(bare) == len(final) and all(map(same_bits, bare, final))}


def rank_main(rank: int, specs: dict[str, dict[str, Any]], folder: str) -> None:
    """Runs named scenes one after the other and writes `rank<r>.json`: name to report."""
    torch.set_num_threads(1)
    path = Path(folder)
    store = dist.FileStore(str(path / "store"), NUM_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS, timeout=timedelta(seconds=60))
    reports: dict[str, Any] = {}
    for name, spec in specs.items():
        try:
            reports[name] = report_of(spec, path / name)
        except BaseException:
            reports[name] = {"crash": traceback.format_exc()}
            break  # the ranks are no longer in step
    (path / f"rank{rank}.json").write_text(json.dumps(reports))
    gc.collect()  # a reducer that holds the group last waits for gloo's threads forever
    dist.destroy_process_group()
