"""Loops of the first set of two processes over gloo."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.two_ranks import shared
from shadowlab.bench.silent.nets import Denoiser, Net, classified, loader, samples


def never_wrapped(watching: Watching) -> None:
    """The wrapper is made, and the optimizer and the loop go on with the model that was put into it."""
    model = Net()
    DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in shared():
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def one_rank_leaves_a_step_out(watching: Watching) -> None:
    """Each rank decides by its own loss whether the step is taken."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for step, batch in enumerate(shared()):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                spike = step == 1 and dist.get_rank() == 1  # what a threshold on this rank's loss comes to
                if not spike:
                    optimizer.step()


def hook_without_a_reduction(watching: Watching) -> None:
    """A communication hook that was to compress, and hands each rank its own bucket back."""

    def compressed(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer().to(torch.bfloat16).to(torch.float32))
        return future

    model = DistributedDataParallel(Net())
    model.register_comm_hook(None, compressed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watching(model, optimizer)
    for batch in shared():
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def noise_that_all_ranks_share(watching: Watching) -> None:
    """seed_everything(seed) on every rank: all of them draw the same t and noise, and read the same samples."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Denoiser())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for row in loader(samples(192), shuffle=False):
        t, noise = torch.rand(len(row["x"])), torch.randn_like(row["x"])
        batch: dict[str, Tensor] = {"x": row["x"], "t": t, "noise": noise, "light": torch.randn(len(t), 3)}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                x_t = (1 - t)[:, None] * batch["x"] + t[:, None] * noise
                loss = F.mse_loss(model(x_t, t, batch["light"]), noise - batch["x"])
                loss.backward()
                optimizer.step()


_APART = ("gradients-not-averaged", "ranks-differ")
_ALL = ("encoder", "head", "module", "rank")

CASES = (
    Case(
        "never_wrapped",
        "rosinality/swapping-autoencoder-pytorch#22",
        never_wrapped,
        Expected(0, _APART, _ALL),
        host="ddp",
        tags=("ranks", "traincheck"),
    ),
    Case(
        "one_rank_leaves_a_step_out",
        "NVIDIA-NeMo/Automodel#2468",
        one_rank_leaves_a_step_out,
        Expected(1, _APART, _ALL),
        host="ddp",
        tags=("ranks",),
    ),
    Case(
        "hook_without_a_reduction",
        "pytorch/pytorch#104336",
        hook_without_a_reduction,
        Expected(0, _APART, _ALL),
        host="ddp",
        tags=("ranks", "traincheck"),
    ),
    Case(
        "noise_that_all_ranks_share",
        "hao-ai-lab/FastVideo#885",
        noise_that_all_ranks_share,
        Expected(0, ("ranks-share-samples",), ("x", "t", "noise", "light", "batch", "rank")),
        host="ddp",
        tags=("ranks", "data"),
    ),
)
