"""What many loops of the corpus train: small models and small data that can be learned.

Seeds are set by who runs a loop; `samples` draws from a generator of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from shadowlab.bench.silent.case import Watching

Batch = Mapping[str, Any]
CLASSES = 4


class Rows(Dataset[dict[str, Tensor]]):
    """Samples by name: each tensor (N, ...) has one row for each."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def samples(number: int = 64, seed: int = 0) -> Rows:
    """`x` (N, 8) float32 around one of four centres, `y` (N,) int64 says which."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (number,), generator=random)
    centres = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(99)) * 2
    return Rows(x=centres[y] + torch.randn(number, 8, generator=random), y=y)


def pictures(number: int = 32, seed: int = 0) -> Rows:
    """`picture` (N, 3, 8, 8) float32 in [0, 1], brighter on one of four sides, `y` (N,) int64 says on which."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (number,), generator=random)
    picture = torch.rand(number, 3, 8, 8, generator=random) * 0.6
    for i, side in enumerate(y.tolist()):
        rows, columns = (slice(0, 4), slice(4, 8))[side // 2], (slice(0, 4), slice(4, 8))[side % 2]
        picture[i, :, rows, columns] += 0.4
    return Rows(picture=picture, y=y)


def loader(rows: Dataset[Any], batch_size: int = 8, *, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    """Batches are dictionaries of tensors (B, ...)."""
    return DataLoader(rows, batch_size=batch_size, shuffle=shuffle, **options)


def endless(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """So many batches, epoch after epoch."""
    done = 0
    while done < steps:
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1


class Net(nn.Module):
    """x (B, 8) -> logits (B, 4)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


class Seer(nn.Module):
    """picture (B, 3, 8, 8) -> logits (B, 4), with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(picture))
        return logits


class Denoiser(nn.Module):
    """x_t (B, 8), t (B,) in [0, 1), condition (B, 3) -> velocity (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 16), nn.SiLU())
        self.light = nn.Linear(3, 16)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x_t: Tensor, t: Tensor, light: Tensor) -> Tensor:
        hidden = self.first(x_t) + self.time(t[:, None]) + self.light(light)
        velocity: Tensor = self.last(F.silu(hidden))
        return velocity


def classified(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy () of the classes of `x`, or of `picture`."""
    return F.cross_entropy(model(batch["x"] if "x" in batch else batch["picture"]), batch["y"])


def fit(
    watching: Watching,
    model: nn.Module,
    optimizer: Any,
    batches: Iterable[Batch],
    compute_loss: Callable[[nn.Module, Batch], Tensor] = classified,
) -> None:
    """The loop of a tutorial, for cases whose fault lies elsewhere."""
    watch = watching(model, optimizer)
    for batch in batches:
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = compute_loss(model, batch)
                loss.backward()
                optimizer.step()
