"""Loops of two processes over gloo."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.modes import validate
from shadowlab.bench.silent.cases.two_ranks import shared
from shadowlab.bench.silent.nets import Net, classified, endless, loader, samples


def sampler_without_its_epoch(watching: Watching) -> None:
    """set_epoch() is never called, and the sampler shuffles by one number in all epochs: the batches are the same."""
    dataset = samples(64)
    sampler: Any = DistributedSampler(dataset, shuffle=True)
    train_loader = DataLoader(dataset, batch_size=8, sampler=sampler, drop_last=True)
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    watch = watching(model, optimizer)
    for _epoch in range(4):
        for batch in train_loader:
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad()
                    loss = classified(model, batch)
                    loss.backward()
                    optimizer.step()
        dist.barrier()


def evaluate_policy(policy: nn.Module) -> float:
    """Accuracy, and the policy in evaluation mode."""
    policy.eval()
    return validate(policy, loader(samples(16, seed=1), shuffle=False))


def evaluated_by_the_main_process(watching: Watching) -> None:
    """Only the main process evaluates, and nobody puts it back: one rank has dropout from then on, and one has none."""
    policy = DistributedDataParallel(Net(dropout=0.3))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    is_main_process, eval_freq = dist.get_rank() == 0, 4
    watch = watching(policy, optimizer)
    policy.train()
    for step, batch in enumerate(endless(shared(320), 16), start=1):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = classified(policy, batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        if step % eval_freq == 0 and is_main_process:
            evaluate_policy(policy.module)
        dist.barrier()


def unfrozen_behind_the_wrapper(watching: Watching) -> None:
    """The encoder is frozen when the model is wrapped, and thawed later: the wrapper reduces the head's gradients."""
    model = Net()
    model.encoder.requires_grad_(False)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05, momentum=0.9)
    watch = watching(ddp, optimizer)
    for step, batch in enumerate(endless(shared(320), 16)):
        if step == 5:
            model.encoder.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.encoder.parameters()), "lr": 0.01})
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(ddp, batch)
                loss.backward()
                optimizer.step()


def shuffled_alike_on_each_rank(watching: Watching) -> None:
    """A loader with shuffle=True and no sampler, and one seed for all ranks: each of them has every batch."""
    torch.manual_seed(102)
    data = DataLoader(samples(128), batch_size=8, shuffle=True)
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    watch = watching(model, optimizer)
    for batch in endless(data, 16):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = classified(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


CASES = (
    Case(
        "sampler_without_its_epoch",
        "cszn/KAIR#106",
        sampler_without_its_epoch,
        Expected(4, ("batch-repeats",), ("x", "y", "batch", "sampler", "DistributedSampler", "set_epoch")),
        host="ddp",
        tags=("data",),
    ),
    Case(
        "evaluated_by_the_main_process",
        "huggingface/lerobot#3668",
        evaluated_by_the_main_process,
        Expected(
            4,
            ("evaluation-mode-in-training", "ranks-differ"),
            ("encoder.2", "encoder", "module", "Net", "Dropout", "model", "policy", "eval", "rank"),
        ),
        host="ddp",
        tags=("mode", "ranks"),
    ),
    Case(
        "unfrozen_behind_the_wrapper",
        "Lightning-AI/pytorch-lightning#20340",
        unfrozen_behind_the_wrapper,
        Expected(5, ("gradients-not-averaged", "ranks-differ"), ("encoder", "rank")),
        host="ddp",
        tags=("ranks", "frozen"),
    ),
    Case(
        "shuffled_alike_on_each_rank",
        "Shark-NLP/DiffuSeq#37",
        shuffled_alike_on_each_rank,
        Expected(0, ("ranks-share-samples",), ("x", "y", "batch", "rank", "ranks")),
        host="ddp",
        tags=("ranks", "data"),
    ),
)
