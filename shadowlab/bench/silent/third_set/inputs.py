"""Loops without a library around them: batches that come again, and inputs and labels that say nothing."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Net, Rows, classified, endless, fit, loader, pictures, samples


class Augmented(Dataset[dict[str, Tensor]]):
    """Turns a sample a little, by chance, whenever it is read."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        return {"x": row["x"] * (0.8 + 0.4 * torch.rand(1)) + 0.2 * torch.randn(8), "y": row["y"]}


def cycled_from_memory(watching: Watching) -> None:
    """itertools.cycle() keeps the batches of the first epoch: no new order, and no new augmentation, ever after."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train_iter = itertools.cycle(loader(Augmented(samples(48)), drop_last=True))
    watch = watching(model, optimizer)
    for _iteration in range(24):
        batch = next(train_iter)
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


class Streaming(IterableDataset[dict[str, Tensor]]):
    """Lines of a file, one after the other."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(len(self.rows)):
            yield self.rows[index]


def streamed_by_each_worker(watching: Watching) -> None:
    """Each worker reads the stream from its beginning to its end: every batch comes as often as there are workers."""
    model = Net(dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data_loader = DataLoader(Streaming(samples(80)), batch_size=8, num_workers=2)
    fit(watching, model, optimizer, data_loader)


class Noiser(nn.Module):
    """x_t (B, 8), t (B,) -> noise (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.first, self.last = nn.Linear(1, 32), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        noise: Tensor = self.last(F.silu(self.first(x_t) + self.time(t[:, None])))
        return noise

    @torch.no_grad()
    def sample(self, number: int, generator: torch.Generator, steps: int = 4) -> Tensor:
        x = torch.randn(number, 8, generator=generator)
        for i in range(steps, 0, -1):
            x = x - self(x, torch.full((number,), i / steps)) / steps
        return x


def samples_rewind_the_seed(watching: Watching) -> None:
    """Pictures for the log take `torch.manual_seed(seed)` as their generator: after each, all noise comes again."""
    model, seed = Noiser(), 42
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train_dataloader = loader(Rows(x=samples(40).columns["x"]))
    watch = watching(model, optimizer)
    for _epoch in range(4):
        for row in train_dataloader:
            clean = row["x"]
            noise, t = torch.randn_like(clean), torch.rand(len(clean))
            for attempt in watch.attempts(batch={"x": clean, "noise": noise, "t": t}):
                with attempt:
                    noisy = torch.lerp(clean, noise, t[:, None])
                    loss = F.mse_loss(model(noisy, t), noise)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        model.eval()
        model.sample(4, generator=torch.manual_seed(seed))
        model.train()


def found_in(root: list[str]) -> tuple[list[str], dict[str, int]]:
    """Paths, and a number for each folder that lies directly in the root."""
    classes = sorted({path.split("/")[0] for path in root})
    return root, {name: index for index, name in enumerate(classes)}


def one_folder_too_high(watching: Watching) -> None:
    """Classes are the folders in the root, in which there is one, `images`, that has the classes in it."""
    names, rows = ("back_pack", "bike", "mug", "ruler"), samples(160)
    root = [f"images/{names[int(y)]}/frame_{i:04}.jpg" for i, y in enumerate(rows.columns["y"])]
    paths, class_to_idx = found_in(root)
    targets = torch.tensor([class_to_idx[path.split("/")[0]] for path in paths])
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    fit(watching, model, optimizer, loader(Rows(x=rows.columns["x"], y=targets)))


def statistics_of_bytes(watching: Watching) -> None:
    """Mean and deviation were taken of bytes, and normalise pictures that are in [0, 1]: all of it is near -1.6."""
    data = pictures(160)
    raw = data.columns["picture"] * 255
    mean, std = raw.mean((0, 2, 3), keepdim=True)[0], raw.std((0, 2, 3), keepdim=True)[0]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, CLASSES)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watch = watching(model, optimizer)
    for row in endless(loader(data), 20):
        batch = {"picture": (row["picture"] - mean) / std, "y": row["y"]}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(batch["picture"]), batch["y"])
                loss.backward()
                optimizer.step()


class Sequences(Dataset[dict[str, Tensor]]):
    """Makes a sequence of symbols whenever one is asked for; which of two symbols comes more often is its class."""

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.seed = number, seed

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        symbols = torch.randint(6, (11,), generator=rng)
        return {"symbols": symbols, "label": ((symbols == 0).sum() > (symbols == 1).sum()).long()}


def every_index_draws_the_same(watching: Watching) -> None:
    """The data set seeds its generator in each call, by a number that does not depend on the index."""
    model = nn.Sequential(nn.Embedding(6, 8), nn.Flatten(), nn.Linear(88, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["symbols"]), batch["label"])

    fit(watching, model, optimizer, loader(Sequences(160, seed=3)), compute_loss)


def _case(name: str, reference: str, loop: Any, expected: Expected, *tags: str) -> Case:
    return Case(name, reference, loop, expected, tags=("data", *tags))


CASES = (
    _case(
        "cycled_from_memory",
        "microsoft/nni#3428",
        cycled_from_memory,
        Expected(6, ("batch-repeats",), ("x", "y", "batch", "DataLoader", "cycle")),
    ),
    _case(
        "streamed_by_each_worker",
        "huggingface/datasets#3423",
        streamed_by_each_worker,
        Expected(1, ("workers-repeat", "batch-repeats"), ("x", "y", "batch", "workers", "DataLoader")),
    ),
    _case(
        "samples_rewind_the_seed",
        "huggingface/diffusers#7991",
        samples_rewind_the_seed,
        Expected(10, ("batch-repeats", "constant-input"), ("x", "noise", "t", "batch", "manual_seed")),
    ),
    _case(
        "one_folder_too_high",
        "jindongwang/transferlearning#182",
        one_folder_too_high,
        Expected(0, ("labels-constant", "constant-input"), ("y",)),
    ),
    _case(
        "statistics_of_bytes",
        "huggingface/lerobot#61",
        statistics_of_bytes,
        Expected(0, ("input-out-of-range", "constant-input"), ("picture",)),
        "range",
    ),
    _case(
        "every_index_draws_the_same",
        "Atcold/NYU-DLSP20#851",
        every_index_draws_the_same,
        Expected(0, ("constant-input", "batch-repeats", "labels-constant"), ("symbols", "label", "batch")),
    ),
)
