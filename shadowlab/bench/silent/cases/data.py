"""Batches that repeat, inputs that are constant, out of their range, or of no influence."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import (
    Denoiser,
    Net,
    Rows,
    Seer,
    classified,
    endless,
    fit,
    loader,
    pictures,
    samples,
)


class Augmented(Dataset[dict[str, Tensor]]):
    """Shifts each sample by noise from a NumPy generator of its own, which every worker copies."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shift = torch.from_numpy(self.random.normal(size=8).astype(np.float32))
        row = self.rows[index]
        return {"x": row["x"] + shift, "shift": shift, "y": row["y"]}


def workers_draw_the_same(watching: Watching) -> None:
    """Each worker has a copy of the data set, and with it of one generator: they draw the same noise."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fit(watching, model, optimizer, loader(Augmented(samples(192)), num_workers=2))


def first_batch_forever(watching: Watching) -> None:
    """`next(iter(loader))` in the loop: a new iterator each time, and its first batch."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train_loader = loader(samples(192), shuffle=False)
    watch = watching(model, optimizer)
    for _ in range(20):
        batch = next(iter(train_loader))
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


def time_is_always_zero(watching: Watching) -> None:
    """`randint(0, 1)` where the number of steps was meant: the model sees clean data alone."""
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    num_train_timesteps = 1
    watch = watching(model, optimizer)
    for row in loader(samples(192)):
        clean, noise = row["x"], torch.randn_like(row["x"])
        timesteps = torch.randint(0, num_train_timesteps, (len(clean),)) / 1000
        noisy = (1 - timesteps)[:, None] * clean + timesteps[:, None] * noise
        batch = {"noisy": noisy, "timesteps": timesteps, "light": torch.randn(len(clean), 3)}
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = F.mse_loss(model(noisy, timesteps, batch["light"]), noise - clean)
                loss.backward()
                optimizer.step()


class Unconditional(Denoiser):
    """Takes class labels, and uses them only where it was built with an embedding for them."""

    def __init__(self, num_class_embeds: int | None = None) -> None:
        super().__init__()
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, 16)

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        hidden = self.first(x_t) + self.time(t[:, None])
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(class_labels)
        velocity: Tensor = self.last(F.silu(hidden))
        return velocity


def class_labels_ignored(watching: Watching) -> None:
    """The model takes class labels, and without an embedding for them it does not use them."""
    model = Unconditional()
    del model.light
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        t, noise = torch.rand(len(batch["x"])), torch.randn_like(batch["x"])
        x_t = (1 - t)[:, None] * batch["x"] + t[:, None] * noise
        return F.mse_loss(model(x_t, t, batch["class_labels"]), noise - batch["x"])

    rows = samples(192).columns
    fit(watching, model, optimizer, loader(Rows(x=rows["x"], class_labels=rows["y"])), compute_loss)


def mask_multiplied_away(watching: Watching) -> None:
    """The mask is binarised after it was scaled to [0, 1] by 255 twice: it is 0, and so is what it selects."""
    model = nn.ModuleDict({"picture": nn.Linear(8, 16), "object": nn.Linear(8, 16), "last": nn.Linear(16, 8)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def compute_loss(model: Any, batch: Any) -> Tensor:
        mask = (batch["mask"] / 255 > 0.5).float()
        hidden = model["picture"](batch["picture"]) + model["object"](batch["object"] * mask)
        return F.mse_loss(model["last"](torch.relu(hidden)), batch["target"])

    picture, other = samples(192).columns["x"], samples(192, seed=2).columns["x"]
    mask = (torch.rand(192, 8, generator=torch.Generator().manual_seed(4)) > 0.5).float()
    rows = Rows(picture=picture, object=other, mask=mask, target=picture * (1 - mask) + other * mask)
    fit(watching, model, optimizer, loader(rows), compute_loss)


def labels_all_zero(watching: Watching) -> None:
    """The class is looked up in a table whose keys are spelled otherwise, and the default is 0."""
    model, names = Seer(), ["Left", "right", "Top", "bottom"]
    table = {name.upper(): i for i, name in enumerate(names)}
    found = pictures(160)
    found.columns["y"] = torch.tensor([table.get(names[int(i)], 0) for i in found.columns["y"]])
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader(found))


def pictures_of_bytes(watching: Watching) -> None:
    """`.float()` without `/ 255`: the network is given pictures of 0 to 255."""
    found = pictures(160)
    found.columns["picture"] = (found.columns["picture"] * 255).to(torch.uint8).float()
    model = Seer()
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader(found))


class Perceptual(nn.Module):
    """A perceptual distance that was trained on pictures in [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.features = nn.Conv2d(3, 6, 3)
        self.requires_grad_(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        one, other = (self.features((x - self.shift) / self.scale) for x in (one, other))
        return F.mse_loss(one, other)


def perceptual_range(watching: Watching) -> None:
    """LPIPS is fed [0, 1]."""
    model, lpips = nn.Conv2d(3, 3, 3, padding=1), Perceptual()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = watching([model, lpips], optimizer)
    for batch in loader(pictures(160)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                restored = torch.sigmoid(model(batch["picture"]))
                loss = F.l1_loss(restored, batch["picture"]) + lpips(restored, batch["picture"])
                loss.backward()
                optimizer.step()


class Tolerant(Dataset[dict[str, Tensor]]):
    """What cannot be prepared is logged, and black pictures take its place."""

    def __init__(self, rows: Rows, broken_from: int) -> None:
        self.rows, self.broken_from, self.log = rows, broken_from, list[str]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        try:
            if index >= self.broken_from:
                raise OSError(f"cannot identify image file {index}.png")
            return row
        except OSError as error:
            self.log.append(str(error))
            return {"picture": torch.zeros_like(row["picture"]), "y": row["y"]}


def black_substitutes(watching: Watching) -> None:
    """From the third batch on the folder is not readable, and training goes on."""
    model = Seer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = endless(loader(Tolerant(pictures(160), 16), shuffle=False), 20)
    fit(watching, model, optimizer, batches)


_REPEATS = ("workers-repeat", "batch-repeats")

CASES = (
    Case(
        "workers_draw_the_same",
        "open-mmlab/OpenPCDet#886",
        workers_draw_the_same,
        Expected(1, _REPEATS, ("shift", "workers", "DataLoader")),
        tags=("data", "traincheck"),
    ),
    Case(
        "first_batch_forever",
        "leohsuofnthu/Pytorch-IterativeFCN#7",
        first_batch_forever,
        Expected(1, ("batch-repeats",), ("x", "y", "batch")),
        tags=("data",),
    ),
    Case(
        "time_is_always_zero",
        "modelscope/DiffSynth-Studio#895",
        time_is_always_zero,
        Expected(0, ("constant-input",), ("timesteps",)),
        tags=("data",),
    ),
    Case(
        "class_labels_ignored",
        "huggingface/diffusers#5330",
        class_labels_ignored,
        Expected(0, ("input-without-influence",), ("class_labels",)),
        tags=("data", "input"),
    ),
    Case(
        "mask_multiplied_away",
        "pkmital/pycadl#5",
        mask_multiplied_away,
        Expected(0, ("input-without-influence", "parameter-without-gradient"), ("object", "mask", "object.weight")),
        tags=("data", "input", "light-diffusion"),
    ),
    Case(
        "labels_all_zero",
        "zzh8829/yolov3-tf2#19",
        labels_all_zero,
        Expected(0, ("labels-constant", "constant-input"), ("y",)),
        tags=("data",),
    ),
    Case(
        "pictures_of_bytes",
        "hill-a/stable-baselines#328",
        pictures_of_bytes,
        Expected(0, ("input-out-of-range",), ("picture",)),
        tags=("data", "range"),
    ),
    Case(
        "perceptual_range",
        "dcharatan/pixelsplat#19",
        perceptual_range,
        Expected(0, ("input-out-of-range",), ("lpips", "Perceptual")),
        tags=("data", "range", "light-diffusion"),
    ),
    Case(
        "black_substitutes",
        "rom1504/clip-retrieval#13",
        black_substitutes,
        Expected(2, ("constant-input", "batch-repeats"), ("picture",)),
        tags=("data", "light-diffusion"),
    ),
)
