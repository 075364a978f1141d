"""Loops without a library around them: what is in their batches, in which mode they run, and what they select by."""

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.modes import validate
from shadowlab.bench.silent.nets import (
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


def masks_of_255(watching: Watching) -> None:
    """A mask is read from a PNG as 0 and 255, and goes into the cross-entropy so: the loss is negative without end."""
    found = pictures(160).columns["picture"]
    drawn = (found.mean(1, keepdim=True) > 0.5).to(torch.uint8) * 255
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    criterion = nn.BCEWithLogitsLoss()

    def compute_loss(net: nn.Module, batch: Any) -> Tensor:
        true_masks = batch["mask"].to(torch.float32)
        loss: Tensor = criterion(net(batch["image"]), true_masks)
        return loss

    rows = Rows(image=found, mask=drawn)
    fit(watching, net, torch.optim.RMSprop(net.parameters(), lr=1e-3), loader(rows), compute_loss)


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Checks each row, and stacks the one that was checked last, as often as there are rows."""
    for row in rows:
        assert row["x"].isfinite().all() and 0 <= int(row["y"]) < 4
    return {name: torch.stack([row[name] for _ in rows]) for name in rows[0]}


def one_sample_all_over_the_batch(watching: Watching) -> None:
    """The collate function stacks a variable that is left over from a loop: each batch is one sample eight times."""
    model = Net()
    train_loader = DataLoader(samples(192), batch_size=8, shuffle=True, collate_fn=collate)
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), train_loader)


class Memory:
    """Episodes that were played, and random ones of them."""

    def __init__(self) -> None:
        self.states: list[list[Tensor]] = []
        self.rewards: list[list[Tensor]] = []

    def sample(self, size: int) -> dict[str, Tensor]:
        picked = random.choices(range(len(self.states)), k=size)
        states = torch.stack([torch.stack(self.states[i]) for i in picked])
        return {"states": states, "rewards": torch.stack([torch.stack(self.rewards[i]) for i in picked])}


def episodes_in_one_list(watching: Watching) -> None:
    """Episodes are collected in one list that is cleared in between: the memory holds the last one, again and again."""
    memory, value = Memory(), nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    states: list[Tensor] = []
    rewards: list[Tensor] = []
    for _ in range(12):
        states.clear()
        rewards.clear()
        state = torch.randn(4)
        for _ in range(6):
            state = state + 0.3 * torch.randn(4)
            states.append(state)
            rewards.append(state[:1].sign())
        memory.states.append(states)
        memory.rewards.append(rewards)
    optimizer = torch.optim.Adam(value.parameters(), lr=1e-3)
    watch = watching(value, optimizer)
    for _ in range(20):
        batch = memory.sample(4)
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = F.smooth_l1_loss(value(batch["states"]), batch["rewards"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


class Jittered(Dataset[dict[str, Tensor]]):
    """Adds noise by NumPy's global generator."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        jitter = torch.from_numpy(np.random.normal(0, 0.5, 8)).float()
        return {"x": row["x"] + jitter, "jitter": jitter, "y": row["y"]}


def seed_worker(worker_id: int) -> None:
    """The same for each worker, whatever its number."""
    np.random.seed(1234)
    random.seed(1234)


def workers_seeded_alike(watching: Watching) -> None:
    """worker_init_fn was to make runs repeatable, and gives every worker of every epoch one seed."""
    model = Net()
    batches = loader(Jittered(samples(160)), num_workers=2, worker_init_fn=seed_worker)
    fit(watching, model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches)


class Writer(nn.Module):
    """Tokens (B, N) -> logits (B, N, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.dropout = nn.Embedding(12, 16), nn.Dropout(0.2)
        self.body, self.lm_head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 12)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.dropout(self.body(self.dropout(self.tokens(ids)))[0]))
        return logits

    @torch.no_grad()
    def generate(self, ids: Tensor, length: int) -> Tensor:
        """Goes on with the most likely tokens."""
        self.eval()
        for _ in range(length):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], 1)
        return ids


def sampled_in_between(watching: Watching) -> None:
    """generate() puts the model into evaluation mode for a text in the log, and leaves it there."""
    model = Writer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    watch = watching(model, optimizer)
    model.train()
    for iteration in range(20):
        ids = (torch.randint(12, (4, 1), generator=draw) + torch.arange(9)) % 12
        for attempt in watch.attempts(batch={"input_ids": ids}):
            with attempt:
                optimizer.zero_grad()
                logits = model(ids[:, :-1])
                loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])
                loss.backward()
                optimizer.step()
        if iteration % 8 == 3:
            model.generate(ids[:1, :2], 4)


class Detector(Seer):
    """Keeps the statistics of its batch norm, by a train() of its own that has forgotten its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, picture: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.backbone(picture)))
        return logits

    def train(self, mode: bool = True) -> "Detector":
        super().train()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def train_without_its_mode(watching: Watching) -> None:
    """An overridden train() calls super().train() without `mode`, so that eval() switches dropout on."""
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    val_loader = loader(pictures(16, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(pictures(160)), 20)):
        model.train()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step in (2, 5):
            model.eval()
            validate(model, val_loader)


def no_loss_is_below_zero(watching: Watching) -> None:
    """The lowest validation loss so far begins at 0.0, which no loss is below: no weights are ever kept."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = samples(32, seed=1).columns
    best_val_loss, best_state = 0.0, None
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        model.train()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step % 2 == 1:
            model.eval()
            with torch.no_grad():
                val_loss = classified(model, held).item()
            if val_loss < best_val_loss:
                best_val_loss, best_state = val_loss, copy.deepcopy(model.state_dict())
    if best_state is not None:
        model.load_state_dict(best_state)


CASES = (
    Case(
        "masks_of_255",
        "milesial/Pytorch-UNet#78",
        masks_of_255,
        Expected(0, ("input-out-of-range",), ("mask", "true_masks")),
        tags=("data", "range"),
    ),
    Case(
        "one_sample_all_over_the_batch",
        "NVIDIA-Genomics-Research/AtacWorks#207",
        one_sample_all_over_the_batch,
        Expected(0, ("constant-input", "batch-repeats", "labels-constant"), ("x", "y", "batch")),
        tags=("data",),
    ),
    Case(
        "episodes_in_one_list",
        "Itomigna2/Muesli-lunarlander#1",
        episodes_in_one_list,
        Expected(0, ("batch-repeats", "constant-input"), ("states", "rewards", "batch")),
        tags=("data",),
    ),
    Case(
        "workers_seeded_alike",
        "xingyizhou/CenterNet#233",
        workers_seeded_alike,
        Expected(1, ("workers-repeat", "batch-repeats"), ("jitter", "workers", "DataLoader")),
        tags=("data",),
    ),
    Case(
        "sampled_in_between",
        "rohitg00/ai-engineering-from-scratch#206",
        sampled_in_between,
        Expected(4, ("evaluation-mode-in-training",), ("dropout", "Writer", "model", "eval", "generate")),
        tags=("mode",),
    ),
    Case(
        "train_without_its_mode",
        "roytseng-tw/Detectron.pytorch#104",
        train_without_its_mode,
        Expected(2, ("training-mode-in-evaluation",), ("dropout", "Detector", "model", "eval")),
        tags=("mode",),
    ),
    Case(
        "no_loss_is_below_zero",
        "gordicaleksa/pytorch-GAT#12",
        no_loss_is_below_zero,
        Expected(1, ("metric-direction",), ("val_loss", "best_val_loss")),
        tags=("metric",),
    ),
)
