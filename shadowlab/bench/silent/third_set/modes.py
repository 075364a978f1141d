"""Loops without a library around them: modes, and what the best weights are chosen by."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.cases.modes import validate
from shadowlab.bench.silent.nets import CLASSES, Net, classified, endless, loader, samples


class Matching:
    """Two encoders whose outputs are to agree; no module itself, but with switches for both."""

    def __init__(self) -> None:
        self.img_enc = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 8))
        self.txt_enc = nn.Sequential(nn.Embedding(CLASSES, 8), nn.Dropout(0.2))

    def train_start(self) -> None:
        self.img_enc.train()
        self.txt_enc.train()

    def val_start(self) -> None:
        self.img_enc.eval()
        self.txt_enc.eval()

    def loss(self, images: Tensor, captions: Tensor) -> Tensor:
        every = self.txt_enc(torch.arange(CLASSES))
        scores = F.normalize(self.img_enc(images), dim=-1) @ F.normalize(every, dim=-1).T
        return F.cross_entropy(scores * 5, captions)


def validated_within_the_epoch(watching: Watching) -> None:
    """Validation comes every few steps, and training mode with the next epoch: in between there is no dropout."""
    model, val_step, eiters = Matching(), 3, 0
    params = [*model.img_enc.parameters(), *model.txt_enc.parameters()]
    optimizer = torch.optim.Adam(params, lr=2e-3)
    held = samples(32, seed=1).columns
    watch = watching([model.img_enc, model.txt_enc], optimizer)
    for _epoch in range(2):
        model.train_start()
        for batch in loader(samples(80)):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = model.loss(batch["x"], batch["y"])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            eiters += 1
            if eiters % val_step == 0:
                model.val_start()
                with torch.no_grad():
                    assert model.loss(held["x"], held["y"]).isfinite()


class Tagger(nn.Module):
    """x (B, 8) -> logits; its last dropout is a layer that forward() makes for itself."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p = p
        self.embed = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(0.1))
        self.out = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        hidden = nn.Dropout(self.p)(hidden)
        logits: Tensor = self.out(hidden)
        return logits


def dropout_that_eval_never_meets(watching: Watching) -> None:
    """A dropout that is made in forward() is new each time, in training mode, and drops in validation, too."""
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    val_loader = loader(samples(32, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for epoch in range(4):
        model.train()
        for batch in loader(samples(40, seed=epoch)):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad(set_to_none=True)
                    loss = classified(model, batch)
                    loss.backward()
                    optimizer.step()
        model.eval()
        validate(model, val_loader)


def worst_of_the_negative_losses(watching: Watching) -> None:
    """The score is the loss with its sign turned, and a smaller score is still what counts as better."""
    model = Net(dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    held = samples(48, seed=1).columns
    best_score, best_epoch, stop_steps, early_stop = np.inf, 0, 0, 20
    best_param: dict[str, Any] = copy.deepcopy(model.state_dict())
    watch = watching(model, optimizer)
    train = iter(endless(loader(samples(192)), 24))
    for epoch_idx in range(12):
        model.train()
        for batch in (next(train), next(train)):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad()
                    loss = classified(model, batch)
                    loss.backward()
                    optimizer.step()
        model.eval()
        with torch.no_grad():
            val_score = -classified(model, held).item()
        if val_score < best_score:
            best_score, best_epoch, stop_steps = val_score, epoch_idx, 0
            best_param = copy.deepcopy(model.state_dict())
        else:
            stop_steps += 1
            if stop_steps >= early_stop:
                break
    assert best_epoch < 12
    model.load_state_dict(best_param)


CASES = (
    Case(
        "validated_within_the_epoch",
        "fartashf/vsepp#4",
        validated_within_the_epoch,
        Expected(
            3,
            ("evaluation-mode-in-training",),
            ("0", "1", "img_enc", "txt_enc", "Sequential", "Dropout", "model", "eval", "val_start"),
        ),
        tags=("mode",),
    ),
    Case(
        "dropout_that_eval_never_meets",
        "wenwenyu/PICK-pytorch#77",
        dropout_that_eval_never_meets,
        Expected(4, ("training-mode-in-evaluation",), ("dropout", "Tagger", "model", "forward", "eval")),
        tags=("mode",),
    ),
    Case(
        "worst_of_the_negative_losses",
        "microsoft/qlib#263",
        worst_of_the_negative_losses,
        Expected(3, ("metric-direction",), ("val_score", "best_score")),
        tags=("metric",),
    ),
)
