"""Loops of two processes over gloo."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817 (as everybody writes it)
from torch.utils.data import DataLoader, IterableDataset

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.two_ranks import shared
from shadowlab.bench.silent.nets import CLASSES, Net, Rows, classified, endless, samples


def head_after_wrapping(watching: Watching) -> None:
    """The head is replaced in the wrapped model: the wrapper hooked the old one, and the new is each rank's own."""
    model = DDP(Net(), find_unused_parameters=True)
    model.module.head = nn.Linear(16, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in endless(shared(), 16):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


class CosFace(nn.Module):
    """A loss with a centre (16,) for each class."""

    def __init__(self, scale: float = 8.0, margin: float = 0.1) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin
        self.W = nn.Parameter(torch.randn(CLASSES, 16))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.W))
        return F.cross_entropy(self.scale * (cosine - self.margin * F.one_hot(labels, CLASSES)), labels)


def loss_outside_the_wrapper(watching: Watching) -> None:
    """The network is wrapped, and the loss, which has weights of its own, is not: they drift apart."""
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    model, loss_fn = DDP(trunk), CosFace()
    optimizer = torch.optim.SGD([{"params": model.parameters()}, {"params": loss_fn.parameters()}], lr=0.05)
    watch = watching([model, loss_fn], optimizer)
    for batch in endless(shared(), 16):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = loss_fn(model(batch["x"]), batch["y"])
                loss.backward()
                optimizer.step()


class Stream(IterableDataset[dict[str, Tensor]]):
    """Samples as they come; knows nothing of ranks."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self.rows.__getitem__, range(len(self.rows)))


def stream_without_shards(watching: Watching) -> None:
    """An IterableDataset has no sampler, and nobody has split it: all ranks read the same samples."""
    model = DDP(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)
    for batch in DataLoader(Stream(samples(160)), batch_size=8):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """The mean over all ranks, by hand."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def seeds_by_rank(watching: Watching) -> None:
    """Each rank makes its weights from a seed of its own, and nobody broadcasts them: averages of different models."""
    torch.manual_seed(1234 + dist.get_rank())
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = watching(model, optimizer)
    for batch in endless(shared(), 16):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                average_gradients(model)
                optimizer.step()


_APART = ("gradients-not-averaged", "ranks-differ")

CASES = (
    Case(
        "head_after_wrapping",
        "pytorch/pytorch#12603",
        head_after_wrapping,
        Expected(0, _APART, ("head", "rank")),
        host="ddp",
        tags=("ranks",),
    ),
    Case(
        "loss_outside_the_wrapper",
        "KevinMusgrave/pytorch-metric-learning#710",
        loss_outside_the_wrapper,
        Expected(0, _APART, ("W", "1", "rank")),
        host="ddp",
        tags=("ranks",),
    ),
    Case(
        "stream_without_shards",
        "huggingface/datasets#5360",
        stream_without_shards,
        Expected(0, ("ranks-share-samples",), ("x", "y", "batch", "rank", "ranks")),
        host="ddp",
        tags=("ranks", "data"),
    ),
    Case(
        "seeds_by_rank",
        "Helsinki-NLP/FoTraNMT#45",
        seeds_by_rank,
        Expected(0, ("ranks-differ",), ("encoder", "head", "rank")),
        host="ddp",
        tags=("ranks",),
    ),
)
