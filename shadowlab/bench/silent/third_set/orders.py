"""Loops without a library around them: the order and the number of calls."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import CLASSES, Net, classified, endless, loader, samples


def critic_steps_share_gradients(watching: Watching) -> None:
    """Two critic steps for one of the generator, with one zero_grad() before both: the second has both gradients."""
    netG, netD = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))  # noqa: N806
    optG = torch.optim.Adam(netG.parameters(), lr=1e-3, betas=(0.0, 0.999))  # noqa: N806
    optD = torch.optim.Adam(netD.parameters(), lr=4e-3, betas=(0.0, 0.999))  # noqa: N806
    num_D_steps = 2  # noqa: N806
    watch = watching([netG, netD], [optG, optD])
    for batch in endless(loader(samples(192), 16), 18):
        halves = batch["x"].split(8)
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optG.zero_grad()
                optD.zero_grad()
                for step_index in range(num_D_steps):
                    real = halves[step_index]
                    with torch.no_grad():
                        fake = netG(torch.randn(len(real), 4))
                    D_loss = F.relu(1 - netD(real)).mean() + F.relu(1 + netD(fake)).mean()  # noqa: N806
                    D_loss.backward()
                    optD.step()
                optG.zero_grad()
                G_loss = -netD(netG(torch.randn(8, 4))).mean()  # noqa: N806
                G_loss.backward()
                optG.step()


def window_longer_than_told(watching: Watching) -> None:
    """Micro-batches are counted from the start of an epoch: what an epoch leaves over is added to the next four."""
    model, gradient_accumulation_steps = Net(), 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    optimizer.zero_grad()
    watch = watching(model, optimizer)
    for _epoch in range(4):
        for step, batch in enumerate(loader(samples(48))):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch) / gradient_accumulation_steps
                    loss.backward()
                    if (step + 1) % gradient_accumulation_steps == 0:
                        clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        optimizer.zero_grad()


class Runner:
    """Trains by epochs; `accumulate` batches make a step."""

    def __init__(self, model: nn.Module, accumulate: int) -> None:
        self.model, self.accumulate = model, accumulate
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        self.last_opt_step = -1

    def optimizer_step(self) -> None:
        clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, watching: Watching, epochs: int) -> None:
        watch = watching(self.model, self.optimizer)
        for epoch in range(epochs):
            batches = loader(samples(48), shuffle=True)
            self.optimizer.zero_grad()
            self.last_opt_step = epoch * len(batches) - 1
            for i, batch in enumerate(batches):
                ni = i + epoch * len(batches)
                for attempt in watch.attempts(batch=batch):
                    with attempt:
                        loss = classified(self.model, batch)
                        loss.backward()
                        if ni - self.last_opt_step >= self.accumulate:
                            self.optimizer_step()
                            self.last_opt_step = ni


def rest_of_the_epoch_thrown_away(watching: Watching) -> None:
    """Six batches an epoch, four a step, and zero_grad() as each epoch starts: a third of the data teaches nothing."""
    Runner(Net(), accumulate=4).run(watching, epochs=4)


def one_cycle_by_epochs(watching: Watching) -> None:
    """A cycle that was made of epochs times batches is stepped once an epoch: the rate stays where it began."""
    model, epochs = Net(), 3
    train_loader = loader(samples(64))
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, epochs=epochs, steps_per_epoch=len(train_loader))
    history = []
    watch = watching(model, optimizer)
    for _epoch in range(epochs):
        total_loss = 0.0
        for batch in train_loader:
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch)
                    total_loss += loss.item()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        scheduler.step()
        history.append(total_loss / len(train_loader))


class Weighting:
    """Weighs the losses of several tasks, and goes back through their sum."""

    def __init__(self, tasks: int, max_norm: float = 0.5) -> None:
        self.w, self.max_norm = torch.full((tasks,), 1 / tasks), max_norm

    def backward(self, losses: Tensor, shared_parameters: list[nn.Parameter]) -> Tensor:
        loss = (losses * self.w).sum() * len(losses)
        if self.max_norm > 0:
            clip_grad_norm_(shared_parameters, self.max_norm)
        loss.backward()
        return loss


def clipped_ahead_of_backward(watching: Watching) -> None:
    """A method that weighs losses clips gradients and then goes backward: what it clips has just been zeroed."""
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    heads = nn.ModuleList([nn.Linear(32, CLASSES), nn.Linear(32, 8)])
    model = nn.ModuleDict({"trunk": trunk, "heads": heads})
    weight_method = Weighting(tasks=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                features = trunk(batch["x"])
                losses = torch.stack(
                    [F.cross_entropy(heads[0](features), batch["y"]), F.mse_loss(heads[1](features), batch["x"])]
                )
                loss = weight_method.backward(losses, list(model.parameters()))
                optimizer.step()
                assert loss.isfinite()


def norm_of(parameters: Any, inverse_scale: float) -> float:
    """The norm of gradients, which are brought back from the scale of the loss on the way."""
    total = 0.0
    for parameter in parameters:
        parameter.grad.mul_(inverse_scale)
        total += parameter.grad.square().sum().item()
    return total**0.5


def unscaled_twice(watching: Watching) -> None:
    """Gradients are unscaled by hand for their norm, and once more by scaler.step(), which knows nothing of it."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    norms = []
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(model, batch)
                scaler.scale(loss).backward()
                norms.append(norm_of(model.parameters(), 1 / scaler.get_scale()))
                scaler.step(optimizer)
                scaler.update()


class OptimizerCallback:
    """Goes back after each batch and clips; steps after every second one."""

    def __init__(self, model: nn.Module, accumulation_steps: int = 2) -> None:
        self.model, self.accumulation_steps, self._counter = model, accumulation_steps, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**11)

    def on_batch_end(self, loss: Tensor) -> None:
        self._counter += 1
        self.scaler.scale(loss).backward()
        clip_grad_norm_(self.model.parameters(), 2.0)
        if self._counter % self.accumulation_steps == 0:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()


def callback_clips_what_is_scaled(watching: Watching) -> None:
    """A callback clips after each backward, and does not know that gradients are 2,048 times what they should be."""
    net = Net()
    callback = OptimizerCallback(net)
    watch = watching(net, callback.optimizer)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(net, batch) / callback.accumulation_steps
                callback.on_batch_end(loss)


_ALL = ("encoder", "head")


def _case(name: str, reference: str, loop: Any, expected: Expected, *tags: str) -> Case:
    return Case(name, reference, loop, expected, tags=tags)


CASES = (
    _case(
        "critic_steps_share_gradients",
        "ajbrock/BigGAN-PyTorch#25",
        critic_steps_share_gradients,
        Expected(0, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", "1", "netD", "optD")),
        "zero_grad",
        "gan",
    ),
    _case(
        "window_longer_than_told",
        "huggingface/transformers#22082",
        window_longer_than_told,
        Expected(7, ("accumulation-count",), ("optimizer", "step", "AdamW", "zero_grad", *_ALL)),
        "accumulation",
    ),
    _case(
        "rest_of_the_epoch_thrown_away",
        "ultralytics/ultralytics#11217",
        rest_of_the_epoch_thrown_away,
        Expected(
            5, ("gradients-cleared-too-early", "accumulation-count"), ("zero_grad", "optimizer", "SGD", "step", *_ALL)
        ),
        "accumulation",
        "zero_grad",
    ),
    _case(
        "one_cycle_by_epochs",
        "ageron/handson-mlp#28",
        one_cycle_by_epochs,
        Expected(1, ("scheduler-count",), ("scheduler", "OneCycleLR", "lr", "step")),
        "schedule",
    ),
    _case(
        "clipped_ahead_of_backward",
        "Cranial-XIX/FAMO#4",
        clipped_ahead_of_backward,
        Expected(0, ("clipping-before-backward", "clipping-after-step"), ("clip_grad_norm_", "shared_parameters")),
        "clipping",
    ),
    _case(
        "callback_clips_what_is_scaled",
        "catalyst-team/catalyst#1319",
        callback_clips_what_is_scaled,
        Expected(0, ("clipping-before-unscaling",), ("clip_grad_norm_", "scaler", "unscale_")),
        "clipping",
        "scaler",
    ),
    _case(
        "unscaled_twice",
        "huggingface/accelerate#113",
        unscaled_twice,
        Expected(
            0, ("scaler-bypassed", "parameter-stands-still"), ("scaler", "GradScaler", "step", "unscale_", "SGD", *_ALL)
        ),
        "scaler",
    ),
)
