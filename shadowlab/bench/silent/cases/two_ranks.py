"""Two processes over gloo: gradients that are not averaged, and weights that drift apart."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, loader, samples


def shared(number: int = 160) -> Any:
    """Batches of this rank."""
    rows = samples(number)
    return loader(rows, shuffle=False, sampler=DistributedSampler(rows, shuffle=True))


def module_called_past_ddp(watching: Watching) -> None:
    """The loss goes through model.module: nothing is reduced, and each rank trains for itself."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    policy = model.module
    watch = watching(model, optimizer)
    for batch in shared():
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(policy, batch)
                loss.backward()
                optimizer.step()


def clipped_on_one_rank(watching: Watching) -> None:
    """Gradients are clipped where the rank is 0; the copies differ from then on."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watching(model, optimizer)
    for batch in shared():
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                if dist.get_rank() == 0:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()


def never_synchronised(watching: Watching) -> None:
    """no_sync() was meant for all micro-batches but the last, and is there for every one."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watching(model, optimizer)
    for index, batch in enumerate(shared()):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                with model.no_sync():
                    loss = classified(model, batch) / 2
                    loss.backward()
                if (index + 1) % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()


def scheduled_once_a_process(watching: Watching) -> None:
    """accelerate's scheduler steps once for each process; this one was made for the steps of one."""
    scheduled(watching, steps=8)


def scheduled(watching: Watching, steps: int) -> None:
    """A cosine of so many steps in accelerate on two ranks, each of which has 8 batches."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(samples(128)), scheduler)
    watch = watching(model, optimizer, accelerator=accelerator)
    for batch in batches:
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()


_APART = ("gradients-not-averaged", "ranks-differ")
_ALL = ("encoder", "head", "module", "rank")

CASES = (
    Case(
        "module_called_past_ddp",
        "jingyaogong/minimind#853",
        module_called_past_ddp,
        Expected(0, _APART, _ALL),
        host="ddp",
        tags=("ranks", "traincheck"),
    ),
    Case(
        "clipped_on_one_rank",
        "deepspeedai/DeepSpeed#1801",
        clipped_on_one_rank,
        Expected(0, _APART, _ALL),
        host="ddp",
        tags=("ranks", "clipping", "traincheck"),
    ),
    Case(
        "never_synchronised",
        "pytorch/pytorch#109191",
        never_synchronised,
        Expected(1, _APART, _ALL),
        host="ddp",
        tags=("ranks", "accumulation"),
    ),
    Case(
        "scheduled_once_a_process",
        "huggingface/accelerate#2926",
        scheduled_once_a_process,
        Expected(4, ("scheduler-count", "learning-rate-zero"), ("scheduler", "CosineAnnealingLR", "lr")),
        host="ddp",
        tags=("ranks", "schedule"),
    ),
)
