"""Training and evaluation mode, and the metric that decides which weights are kept."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, Seer, classified, endless, loader, pictures, samples


def validate(model: nn.Module, batches: object) -> float:
    """Accuracy in [0, 1]."""
    right = total = 0
    with torch.no_grad():
        for batch in batches:  # type: ignore[attr-defined]
            guess = model(batch["x"] if "x" in batch else batch["picture"]).argmax(-1)
            right += int((guess == batch["y"]).sum())
            total += len(guess)
    return right / total


def never_back_to_training(watching: Watching) -> None:
    """Validation puts the model into evaluation mode, and nobody puts it back: dropout is off from then on."""
    model = Net(dropout=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = loader(samples(32, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    model.train()
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step == 2:
            model.eval()
            validate(model, held)


def validated_in_training_mode(watching: Watching) -> None:
    """Nobody calls eval(): the validation set goes into the running statistics."""
    model = Seer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = loader(pictures(16, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(pictures(160)), 24)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step in (2, 5):
            validate(model, held)


class Functional(Net):
    """F.dropout without `training=self.training`."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.encoder(x), 0.4)
        logits: Tensor = self.head(hidden)
        return logits


def dropout_in_validation(watching: Watching) -> None:
    """Dropout is a function that does not know of evaluation mode: validation is noisy."""
    model = Functional()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held = loader(samples(32, seed=1), shuffle=False)
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        model.train()
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
        if step in (2, 5):
            model.eval()
            validate(model, held)


def plateau_of_accuracy(watching: Watching) -> None:
    """ReduceLROnPlateau waits for its metric to fall, and is given the accuracy: success lowers the rate."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    held = loader(samples(32, seed=1), shuffle=False)
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
            val_acc = validate(model, held)
            scheduler.step(val_acc)


def lowest_psnr_is_kept(watching: Watching) -> None:
    """`main_val_metric: psnr`, `main_val_metric_goal: minimize`: the worst weights are the best."""
    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    held = samples(16, seed=1).columns["x"]
    main_val_metric, main_val_metric_goal = "psnr", "minimize"
    best_metric = 1e8 if main_val_metric_goal == "minimize" else -1e8
    best = copy.deepcopy(model.state_dict())
    watch = watching(model, optimizer)
    for step, batch in enumerate(endless(loader(samples(192)), 24)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = F.mse_loss(model(batch["x"]), batch["x"])
                loss.backward()
                optimizer.step()
        if step % 2 == 1:
            model.eval()
            with torch.no_grad():
                psnr = -10 * torch.log10(F.mse_loss(model(held), held)).item()
            val_metrics = {main_val_metric: psnr}
            if val_metrics[main_val_metric] < best_metric:
                best_metric, best = psnr, copy.deepcopy(model.state_dict())
            model.train()
    model.load_state_dict(best)


CASES = (
    Case(
        "never_back_to_training",
        "joeynmt/joeynmt#184",
        never_back_to_training,
        Expected(3, ("evaluation-mode-in-training",), ("encoder.2", "encoder", "Net", "model", "eval")),
        tags=("mode",),
    ),
    Case(
        "validated_in_training_mode",
        "wolny/pytorch-3dunet#53",
        validated_in_training_mode,
        Expected(2, ("training-mode-in-evaluation",), ("backbone.1", "backbone", "Seer", "model", "eval")),
        tags=("mode",),
    ),
    Case(
        "dropout_in_validation",
        "pytorch/pytorch#26338",
        dropout_in_validation,
        Expected(2, ("training-mode-in-evaluation",), ("dropout", "Functional", "model")),
        tags=("mode", "traincheck"),
    ),
    Case(
        "plateau_of_accuracy",
        "md-mohaiminul/ViS4mer#4",
        plateau_of_accuracy,
        Expected(1, ("metric-direction",), ("ReduceLROnPlateau", "scheduler", "val_acc")),
        tags=("metric",),
    ),
    Case(
        "lowest_psnr_is_kept",
        "https://github.com/prs-eth/Marigold/tree/main/config",
        lowest_psnr_is_kept,
        Expected(3, ("metric-direction",), ("psnr", "best_metric", "main_val_metric")),
        tags=("metric", "marigold"),
    ),
)
