"""Loops without a library around them: the order of calls, scalers, clipping and schedules."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from shadowlab.bench.silent.case import Case, Expected, Watching
from shadowlab.bench.silent.nets import Net, classified, endless, loader, samples


def epoch_shorter_than_a_step(watching: Watching) -> None:
    """Eight micro-batches make a step, and an epoch has four: the count begins again before it gets there."""
    model, gradient_accumulation_steps = Net(), 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_dataloader = loader(samples(32))
    watch = watching(model, optimizer)
    for _epoch in range(5):
        model.zero_grad()
        for step, batch in enumerate(train_dataloader):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    loss = classified(model, batch) / gradient_accumulation_steps
                    loss.backward()
                    if (step + 1) % gradient_accumulation_steps == 0:
                        optimizer.step()
                        model.zero_grad()


def adversarial_after_the_step(watching: Watching) -> None:
    """The segmenter is stepped before the adversarial loss reaches it, and zeroed before it is stepped again."""
    segmenter, critic = nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.05, momentum=0.9)
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=1e-3)
    watch = watching([segmenter, critic], [optimizer, optimizer_d])
    for batch in endless(loader(samples(192)), 20):
        target = batch["x"] + 0.5
        for attempt in watch.attempts(batch={**batch, "target": target}):
            with attempt:
                optimizer.zero_grad()
                source_prediction = segmenter(batch["x"])
                loss_seg = F.cross_entropy(source_prediction, batch["y"])
                loss_seg.backward()
                optimizer.step()
                target_prediction = segmenter(target)
                loss_adv = 0.1 * F.softplus(-critic(target_prediction.softmax(-1))).mean()
                loss_adv.backward()
                optimizer_d.zero_grad()
                on_source = critic(source_prediction.detach().softmax(-1))
                on_target = critic(target_prediction.detach().softmax(-1))
                loss_d = F.softplus(-on_source).mean() + F.softplus(on_target).mean()
                loss_d.backward()
                optimizer_d.step()


def closure_that_sums(watching: Watching) -> None:
    """L-BFGS calls its closure several times a step, and zero_grad() stands outside of it."""
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.02, max_iter=4, history_size=5)
    watch = watching(net, optimizer)

    def train_step(batch: dict[str, Tensor]) -> Any:
        optimizer.zero_grad()

        def closure() -> Tensor:
            loss = F.cross_entropy(net(batch["x"]), batch["y"])
            loss.backward()
            return loss

        return optimizer.step(closure)

    for batch in endless(loader(samples(192), 32), 12):
        watch.step(lambda batch=batch: train_step(batch), batch=batch)


def scaler_for_every_epoch(watching: Watching) -> None:
    """The scaler is made in the function of an epoch: the scale never gets down from where it overflows."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = watching(model, optimizer)

    def train_one_epoch(batches: Any) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        for batch in batches:
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad()
                    with torch.autocast("cpu", torch.float16):
                        loss = classified(model, batch)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()

    for _ in range(5):
        train_one_epoch(loader(samples(32)))


def loss_never_scaled(watching: Watching) -> None:
    """What scale() returns is thrown away: the loss itself goes back, and its gradients are divided by the scale."""
    net = Net()
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    watch = watching(net, opt)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                opt.zero_grad(set_to_none=True)
                loss = classified(net, batch)
                scaler.scale(loss)
                loss.backward()
                scaler.step(opt)
                scaler.update()


def stepped_by_both(watching: Watching) -> None:
    """scaler.step(optimizer) was added, and optimizer.step() stayed below it: each batch is stepped along twice."""
    net_g = Net()
    optim_g = torch.optim.AdamW(net_g.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    watch = watching(net_g, optim_g)
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                with torch.autocast("cpu", torch.bfloat16):
                    loss_gen_all = classified(net_g, batch)
                optim_g.zero_grad()
                scaler.scale(loss_gen_all).backward()
                scaler.unscale_(optim_g)
                clip_grad_norm_(net_g.parameters(), 5.0)
                scaler.step(optim_g)
                scaler.update()
                optim_g.step()


def unscaled_after_the_clip(watching: Watching) -> None:
    """unscale_() is called, and after the clipping: the bound holds for gradients that are 4,096 times too large."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    watch = watching(model, optimizer)

    def before_optimizer_step(max_norm: float = 1.0) -> None:
        clip_grad_norm_(model.parameters(), max_norm)
        scaler.unscale_(optimizer)

    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = classified(model, batch)
                scaler.scale(loss).backward()
                before_optimizer_step()
                scaler.step(optimizer)
                scaler.update()


class Faces:
    """A GAN whose two updates were copied from each other."""

    def __init__(self) -> None:
        self.enc = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discr = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Linear(16, 1))
        self.enc_opt = torch.optim.Adam(self.enc.parameters(), lr=1e-3)
        self.discr_opt = torch.optim.Adam(self.discr.parameters(), lr=1e-3)

    def update_discr(self, real: Tensor, fake: Tensor) -> None:
        self.discr_opt.zero_grad()
        loss = F.softplus(-self.discr(real)).mean() + F.softplus(self.discr(fake.detach())).mean()
        loss.backward()
        clip_grad_norm_(self.discr.parameters(), 0.1)
        self.discr_opt.step()

    def update_enc(self, fake: Tensor) -> None:
        self.enc_opt.zero_grad()
        loss = F.softplus(-self.discr(fake)).mean()
        loss.backward()
        clip_grad_norm_(self.discr.parameters(), 0.1)
        self.enc_opt.step()


def clips_the_other_net(watching: Watching) -> None:
    """The generator's update clips the discriminator, which is not stepped there; the generator is never clipped."""
    faces = Faces()
    watch = watching([faces.enc, faces.discr], [faces.enc_opt, faces.discr_opt])
    for batch in endless(loader(samples(192)), 20):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                fake = faces.enc(torch.randn(len(batch["x"]), 4))
                faces.update_discr(batch["x"], fake)
                faces.update_enc(fake)


def scheduled_here_and_there(watching: Watching) -> None:
    """The function of a step steps the schedule, and so does the loop around it: it is through after half the steps."""
    model, total = Net(), 24
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = CosineAnnealingLR(optimizer, T_max=total)
    watch = watching(model, optimizer)

    def train_step(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        loss = classified(model, batch)
        loss.backward()
        optimizer.step()
        scheduler.step()

    for batch in endless(loader(samples(192)), total):
        for attempt in watch.attempts(batch=batch):
            with attempt:
                train_step(batch)
                scheduler.step()


def scheduled_as_an_epoch_starts(watching: Watching) -> None:
    """The handler of the schedule hangs on the start of an epoch and not on its end: the first rate is never used."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scheduler = MultiStepLR(optimizer, milestones=[1, 3], gamma=0.1)
    watch = watching(model, optimizer)
    started, completed = [scheduler.step], [model.train]
    for _epoch in range(5):
        for handler in started:
            handler()
        for batch in loader(samples(32)):
            for attempt in watch.attempts(batch=batch):
                with attempt:
                    optimizer.zero_grad()
                    loss = classified(model, batch)
                    loss.backward()
                    optimizer.step()
        for handle in completed:
            handle()


_ALL = ("encoder", "head")
_CLIPPED = ("clipping-after-step", "clipping-before-backward")

CASES = (
    Case(
        "epoch_shorter_than_a_step",
        "huggingface/transformers#2995",
        epoch_shorter_than_a_step,
        Expected(
            4,
            ("no-optimizer-step", "gradients-cleared-too-early", "accumulation-count", "parameter-stands-still"),
            ("optimizer", "AdamW", "step", "zero_grad", *_ALL),
        ),
        tags=("accumulation", "step"),
    ),
    Case(
        "adversarial_after_the_step",
        "MyeongJin-Kim/Learning-Texture-Invariant-Representation#11",
        adversarial_after_the_step,
        Expected(1, ("gradients-cleared-too-early",), ("zero_grad", "loss_adv", "segmenter", "0")),
        tags=("zero_grad", "gan"),
    ),
    Case(
        "closure_that_sums",
        "skorch-dev/skorch#636",
        closure_that_sums,
        Expected(0, ("gradients-not-cleared", "stale-gradients"), ("zero_grad", "closure", "LBFGS", "0", "2")),
        tags=("zero_grad",),
    ),
    Case(
        "scaler_for_every_epoch",
        "conservationtechlab/animl-py#298",
        scaler_for_every_epoch,
        Expected(
            4,
            ("scaler-not-updated", "no-optimizer-step", "parameter-stands-still"),
            ("scaler", "GradScaler", "update", "optimizer", "AdamW", "step", *_ALL),
        ),
        tags=("scaler",),
    ),
    Case(
        "loss_never_scaled",
        "Lightning-AI/pytorch-lightning#4148",
        loss_never_scaled,
        Expected(0, ("scaler-bypassed",), ("scaler", "scale", "backward", "loss", "opt", "SGD", "step")),
        tags=("scaler",),
    ),
    Case(
        "stepped_by_both",
        "IAHispano/Applio#860",
        stepped_by_both,
        Expected(0, ("scaler-bypassed",), ("scaler", "optim_g", "AdamW", "step")),
        tags=("scaler",),
    ),
    Case(
        "unscaled_after_the_clip",
        "Lightning-AI/pytorch-lightning#9599",
        unscaled_after_the_clip,
        Expected(0, ("clipping-before-unscaling",), ("clip_grad_norm_", "scaler", "unscale_")),
        tags=("scaler", "clipping"),
    ),
    Case(
        "clips_the_other_net",
        "TencentYoutuResearch/Adv-Makeup#25",
        clips_the_other_net,
        Expected(0, _CLIPPED, ("clip_grad_norm_", "discr", "1")),
        tags=("clipping", "gan"),
    ),
    Case(
        "scheduled_here_and_there",
        "ZhikangNiu/encodec-pytorch#21",
        scheduled_here_and_there,
        Expected(0, ("scheduler-count",), ("scheduler", "CosineAnnealingLR", "lr")),
        tags=("schedule",),
    ),
    Case(
        "scheduled_as_an_epoch_starts",
        "michuanhaohao/reid-strong-baseline#190",
        scheduled_as_an_epoch_starts,
        Expected(0, ("scheduler-order",), ("scheduler", "MultiStepLR")),
        tags=("schedule",),
    ),
)
