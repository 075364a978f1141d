"""Loops of the first set without a library around them: scalers, clipping, schedules, accumulation, precision."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, endless, loader, samples


def one_loss_unscaled(watching: Watching) -> None:
    """A GAN with a scaler: the generator's loss is scaled, the discriminator's is not, and both are unscaled."""
    generator, discriminator = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer_g = torch.optim.SGD(generator.parameters(), lr=0.05)
    optimizer_d = torch.optim.SGD(discriminator.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    watch = watching([generator, discriminator], [optimizer_g, optimizer_d])
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fake = generator(torch.randn(len(batch["x"]), 4))
                optimizer_g.zero_grad()
                scaler.scale(F.softplus(-discriminator(fake)).mean()).backward()
                scaler.step(optimizer_g)
                optimizer_d.zero_grad()
                loss_d = F.softplus(-discriminator(batch["x"])).mean()
                loss_d = loss_d + F.softplus(discriminator(fake.detach())).mean()
                loss_d.backward()
                scaler.step(optimizer_d)
                scaler.update()


def values_clipped_while_scaled(watching: Watching) -> None:
    """clip_grad_value_(1.0) on gradients that are 4,096 times too large: the update is of signs alone."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                scaler.scale(loss).backward()
                torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()


def warmup_never_stepped(watching: Watching) -> None:
    """A schedule that begins at 0 is made, and never stepped."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    watch = watching(model, optimizer)
    for batch in endless(loader(samples(192)), 24):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()
    assert lr_scheduler.last_epoch == 0


def first_micro_batch_alone(watching: Watching) -> None:
    """`if index % 4 == 0`: the first update has one micro-batch of four."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    accumulation_steps = 4
    watch = watching(model, optimizer)
    for index, batch in enumerate(loader(samples(192))):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                loss = classified(model, batch) / accumulation_steps
                loss.backward()
                if index % accumulation_steps == 0:
                    optimizer.step()
                    optimizer.zero_grad()


def half_of_everything(watching: Watching) -> None:
    """model.half() to save memory, under SGD: most updates are below the last digit of their weight."""
    model = Net().half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(batch["x"].half()).float(), batch["y"])
                loss.backward()
                optimizer.step()


def critic_never_zeroed(watching: Watching) -> None:
    """A GAN in which optimizer_d.zero_grad() is missing: the critic steps along everything since the beginning."""
    generator, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3)
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=1e-3)
    watch = watching([generator, critic], [optimizer_g, optimizer_d])
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fake = generator(torch.randn(len(batch["x"]), 4))
                loss_d = F.softplus(-critic(batch["x"])).mean() + F.softplus(critic(fake.detach())).mean()
                loss_d.backward()
                optimizer_d.step()
                optimizer_g.zero_grad()
                loss_g = F.softplus(-critic(fake)).mean()
                loss_g.backward()
                optimizer_g.step()


def head_twice_in_one_list(watching: Watching) -> None:
    """The head's parameters are chained to the model's, which have them already: one group, each of them twice."""
    model = Net()
    parameters = itertools.chain(model.parameters(), model.head.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    watch = watching(model, optimizer)
    for batch in loader(samples(192)):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                loss = classified(model, batch)
                loss.backward()
                optimizer.step()


_ALL = ("encoder", "head")

CASES = (
    Case(
        "critic_never_zeroed",
        "Hsintien-Ng/idinvert_pytorch-reproduced#1",
        critic_never_zeroed,
        Expected(1, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", "0", "1.0", "2", "critic")),
        tags=("zero_grad", "gan"),
    ),
    Case(
        "head_twice_in_one_list",
        "pytorch/pytorch#40967",
        head_twice_in_one_list,
        Expected(0, ("parameter-in-two-groups",), ("head",)),
        tags=("optimizer",),
    ),
    Case(
        "one_loss_unscaled",
        "pytorch/pytorch#26512",
        one_loss_unscaled,
        Expected(0, ("scaler-bypassed",), ("scaler", "loss_d", "backward", "0", "1", "scale", "optimizer")),
        tags=("scaler", "gan"),
    ),
    Case(
        "values_clipped_while_scaled",
        "harubaru/waifu-diffusion#64",
        values_clipped_while_scaled,
        Expected(0, ("clipping-before-unscaling",), ("clip_grad_value_", "scaler", "unscale_")),
        tags=("scaler", "clipping"),
    ),
    Case(
        "warmup_never_stepped",
        "https://github.com/ChaosAIVision/Light-Diffusion",
        warmup_never_stepped,
        Expected(1, ("learning-rate-zero", "scheduler-count"), ("lr", "group 0", "scheduler", "optimizer", "AdamW")),
        tags=("schedule", "light-diffusion"),
    ),
    Case(
        "first_micro_batch_alone",
        "rasbt/LLMs-from-scratch#299",
        first_micro_batch_alone,
        Expected(4, ("accumulation-count",), ("optimizer", "step", "AdamW", *_ALL)),
        tags=("accumulation",),
    ),
    Case(
        "half_of_everything",
        "NVIDIA/apex#1728",
        half_of_everything,
        Expected(0, ("half-precision-weights", "parameter-stands-still"), _ALL),
        tags=("precision",),
    ),
)
